// One update's batch at theta_old on the device: what Python hands over, and how the work and the
// memory are laid out. Plain structs of sizes and device pointers; no CUDA header, so that the plan
// can be tested anywhere.
//
// Packed vectors. Parameters, gradients and CG's vectors have one layout inside: layer by layer the
// weight as [in_rows][out_padded] with the bias as row `in`, then log std, then what the network
// does not use. Inputs carry a constant 1 in column `in`, so that no code knows of biases. Padding
// is 0. `map` [packed] says where an element comes from in (theta [P], frozen tensors): -1 is
// padding, less than P is stepped.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "common/activations.h"
#include "common/heads.h"
#include "common/update_options.h"

namespace trpo_fast::cuda {

constexpr int kThreads = 256;  // of every block
constexpr int kWarps = kThreads / 32;
constexpr int kMaxLayers = 32;
// Widest layer whose panels a block keeps to itself; wider networks are computed in tiles.
constexpr int kPanelWidth = 256;
constexpr int kTileColumns = 128;  // of what a block computes at once
// Rows of a panel: many amortise the traffic of weights and partial sums; a small batch needs few,
// so that all multiprocessors get some.
constexpr int kPanelRows = 64, kSmallPanelRows = 16;
constexpr int kMaxBlocks = 64;  // categorical blocks of a head
constexpr int kMaxParts = 32;   // of a joint head
// Tiles of the plan for wide networks: rows and columns, and rows between two passes over the
// layers, so that what they hand on stays in the L2 cache.
constexpr int kTile = 128;
constexpr Index kChunkRows = 8192;  // whole panels
// Partial sums of a weight gradient at most, and the rows that each is worth.
constexpr int kMaxSplits = 32, kSplitRows = 256;
// What a launch reports, in doubles.
enum Figure : int {
  kStatus,  // UpdateStatus
  kLossBefore,
  kLossAfter,
  kKl,
  kExpected,
  kStep,
  kGradientNorm,
  kBacktracks,
  kSolveStatus,
  kIterations,
  kResidual,
  kCurvature,  // x'(F + damping I)x
  kFigures
};

TRPO_FAST_HOST_DEVICE constexpr Index round_up4(Index n) {
  return (n + 3) / 4 * 4;
}

struct LayerPlan {
  int in, out;
  int in_rows;  // in + 1 (the bias), padded
  int in_padded, out_padded;
  Activation activation;
  double parameter;
  Index weight;      // in packed vectors
  Index backward;    // in the copy [out_padded][in_padded] that backward reads; none for the first
  int value, slope;  // columns in a row of the cache; slope -1: from the value
};

struct NetworkPlan {
  LayerPlan layers[kMaxLayers];
  int count;
  int widest;  // columns of a panel buffer
  int cache_width;
  int inputs;     // column of a row's inputs in the cache; -1: read where they are
  Index log_std;  // in packed vectors
  Index packed, backward;

  TRPO_FAST_MEMBER const LayerPlan& last() const { return layers[count - 1]; }
};

// [in, out, activation, parameter] of a layer.
struct LayerShape {
  Index in, out;
  Activation activation;
  double parameter;
};

// What the Fisher products multiply; their sums are float32. The numbers are part of the Python
// interface.
enum class Products : int {
  exact = 0,   // the element's own type
  tf32 = 1,    // 11 significant bits
  bf16 = 2,    // 8
  bf16x3 = 3,  // 16, as two bfloat16: high high + high low + low high
};

// `unused`: elements of theta that the network does not read; they follow the network's own.
// `tiled`: for tiled_plan.
NetworkPlan network_plan(const std::vector<LayerShape>& shapes, Index log_std, Index unused,
                         bool tiled);

// How a launch is cut. In panels every block owns neighbouring rows and takes them through the
// whole network; in tiles the grid computes one layer of a chunk of rows after the other.
struct LaunchPlan {
  int blocks, panel_rows;
  bool tiled;
  bool weights_resident;  // in shared memory
  int partials;           // sums that make a gradient: one a block, or one a split of the rows
  Index chunk_rows;       // tiled only
  int staged;             // tensor cores in panels: tiles of 16 rows in shared memory at once
  std::size_t shared_bytes;
};

// Tensor cores in panels (tensor_panels.cuh): a warp's registers hold two tiles of 16 rows, and of
// each 8 tiles of 8 columns.
constexpr int kTensorTiles = 8, kTensorRowTiles = 2;
constexpr int kTensorRows = 16 * kTensorRowTiles * kWarps;  // of a panel
constexpr int kPairWords = 128;  // of a step of depth and two tiles of columns: four a lane
constexpr int kTileSums = 128;   // of a warp's product, 16 x 8
// Of rows in shared memory: 8 more than a multiple of 32, so that a fragment's lanes read different
// banks.
constexpr int kTensorStride = 8 * kTensorTiles + 8;

// A layer's operands and sums in shared memory.
struct TensorSizes {
  int steps, pairs;            // of depth and of column tiles, of [in + 1, out]
  int back_steps, back_pairs;  // of [out, in]
  int in_tiles;                // of 8 inputs, the 1 among them
  Index forward, backward;     // words of V_l, and of W_l where there is one; of W_l'
  Index sums;
};

TRPO_FAST_HOST_DEVICE constexpr TensorSizes tensor_sizes(const LayerPlan& layer,
                                                         Products products) {
  const int depth = products == Products::tf32 ? 8 : 16;
  const int parts = products == Products::bf16x3 ? 2 : 1;
  TensorSizes s{};
  s.steps = (layer.in + depth) / depth;
  s.pairs = (layer.out + 15) / 16;
  s.back_steps = (layer.out + depth - 1) / depth;
  s.back_pairs = (layer.in + 15) / 16;
  s.in_tiles = (layer.in + 8) / 8;
  s.forward = Index(parts) * s.steps * s.pairs * kPairWords;
  // No delta goes below the first layer.
  s.backward = layer.weight > 0 ? Index(parts) * s.back_steps * s.back_pairs * kPairWords : 0;
  s.sums = Index(s.pairs) * s.in_tiles * kTileSums;
  return s;
}

struct DeviceLimits {
  int multiprocessors, shared_bytes;
  int capability;  // 90 for 9.0
};

// What sums over the grid need: two buffers in turns, this many sums of each block.
constexpr int kGridSums = 3;
TRPO_FAST_HOST_DEVICE constexpr Index grid_sums_elements(Index blocks) {
  return 2 * blocks * kGridSums;
}

// Row stride of a panel buffer: an odd number of 16-byte units keeps neighbouring rows in different
// banks of shared memory.
TRPO_FAST_HOST_DEVICE constexpr int panel_stride(int columns) {
  return columns / 4 % 2 == 0 ? columns + 4 : columns;
}

// A block's small arrays in shared memory, in doubles: warps' sums, rows' gains, two log stds with
// their inverses and the gradient; a variance [A] and warps' partial sums [kWarps][32] of the
// element's type follow.
TRPO_FAST_HOST_DEVICE constexpr std::size_t scalar_doubles(int panel_rows, int actions) {
  return std::size_t(round_up4(kWarps * kGridSums + panel_rows + 5 * actions));
}
TRPO_FAST_HOST_DEVICE constexpr std::size_t scalar_elements(int actions) {
  return std::size_t(round_up4(actions)) + kWarps * 32;
}

// Depth of a stage of a tile's product and the row stride of its operands in shared memory: with 8
// more than a tile has, the lanes of a tensor core's fragment read 32 different banks.
TRPO_FAST_HOST_DEVICE constexpr int tile_depth(std::size_t element) {
  return element == 4 ? 16 : 8;
}
constexpr int kTileStride = kTile + 8;

// blocks_each: how many blocks a multiprocessor holds at once.
LaunchPlan tiled_plan(const NetworkPlan& network, Index rows, int actions, std::size_t element,
                      const DeviceLimits& device, int blocks_each);
std::size_t tiled_shared_bytes(int actions, std::size_t element);

// In panels. products: of element float, if not exact. Raises std::invalid_argument where the
// device's shared memory is too small.
LaunchPlan launch_plan(const NetworkPlan& network, Index rows, int actions, std::size_t element,
                       const DeviceLimits& device, Products products);
// Whether launch_plan serves, with each element's own products and with tensor cores; what it does
// not goes to tiles.
bool fits_panels(const NetworkPlan& network, int actions, std::size_t element,
                 const DeviceLimits& device);
bool fits_tensor_panels(const NetworkPlan& network, int actions, const DeviceLimits& device,
                        Products products);

// Observations, and the weight and the mask of each; all contiguous.
template <class T>
struct RowSet {
  const T* obs;              // [rows, in]
  const T* weights;          // [rows] or null
  const double* weight_sum;  // their sum; null with weights
  const std::uint8_t* mask;  // [rows, mask_width] or null
  Index rows;
};

// M^-1 of conjugate gradients, as trpo_fast/preconditioning/kfac.py makes it. For each layer's part
// R' of a packed vector, [in_rows, out_padded]: U_A [(U_A' R' U_G) * scale'] U_G', or (A + cI)^-1
// R' (G + cI)^-1. In `matrices`, from at[l] on (-1: the layer has no block): U_A or the inverse
// [in_rows, in_rows], U_G' or the inverse [out_padded, out_padded], and of eigenbases U_G and
// scale' [in_rows, out_padded]; padding is 0.
template <class T>
struct Preconditioner {
  const T* diagonal;  // [P], for what no block covers; null: there is no preconditioner
  const T* matrices;
  Index at[kMaxLayers];
  bool eigen[kMaxLayers];
};

enum class Task : int { gradient, product, solve, evaluate, update, forward };

// Everything that a launch reads and writes; the kernel's one argument. Device pointers.
template <class T>
struct ProblemArgs {
  Task task;
  NetworkPlan network;
  int head_kind;       // its place in Heads
  bool shared_metric;  // of that head
  int outputs, actions;
  int scales;                    // its log stds that are parameters
  int metric_width, mask_width;  // of a row
  int part_count;
  HeadPart parts[kMaxParts];
  Index nvec[kMaxBlocks];
  RowSet<T> rows, fisher_rows;
  bool fisher_is_all;
  const T* real_actions;                 // [N, A] or null
  const std::int64_t* category_actions;  // [N, blocks] or null
  const T* advantages;                   // [N] or null
  const double* old_log_prob;            // [N] or null: the policy's own
  bool kl_new_old;
  const int* map;    // [packed]
  Index parameters;  // P
  const T* theta;    // [P + frozen]
  UpdateOptions options;
  Preconditioner<T> preconditioner;  // tiled only
  Products products;
  bool forward_only;  // no other task will be run: the workspace is small
  bool fisher_ready;  // an earlier launch filled the Fisher rows' caches
  LaunchPlan plan;

  const T* vector;  // [P]: v, g or a candidate
  T* result;        // [P]: g, F v, x or the accepted parameters; of forward [N, outputs]
  double* figures;  // [kFigures]

  // Workspace.
  T *weights, *backward, *g, *x, *r, *p, *candidate;  // [packed]; backward: its own size
  T* partials;                                        // [plan.partials][packed]
  T* cache;                     // [fisher rows (+ a panel a block, or a chunk)][cache_width]
  T* metric;                    // [fisher rows][metric_width]
  T* old_outputs;               // [N][outputs]
  double *row_log_prob, *sums;  // [N], GridSums
  // Of the tiled plan: two panels of a chunk's rows and the blocks' sums for log std.
  T* chunk[2];           // [chunk_rows][widest]
  T *z, *rotated[2];     // M^-1 r and what is on the way to it; [packed]
  double* log_std_sums;  // [blocks][scales]

  TRPO_FAST_MEMBER Head head() const {
    return {head_kind, outputs, actions, nvec, parts, part_count};
  }
};

static_assert(sizeof(ProblemArgs<double>) <= 4096, "a kernel's arguments");

// Sets the workspace's pointers from `base` (null: only counts); returns its bytes.
template <class T>
std::size_t lay_out(ProblemArgs<T>& args, void* base);

// Runs args.task on `stream` of `device`; returns at once. Raises std::runtime_error with advice.
template <class T>
void launch(const ProblemArgs<T>& args, int device, void* stream);
template <>
void launch(const ProblemArgs<float>& args, int device, void* stream);
template <>
void launch(const ProblemArgs<double>& args, int device, void* stream);

// Where plan.tiled; `launch` goes there itself.
template <class T>
void launch_in_tiles(const ProblemArgs<T>& args, int device, void* stream);
// In panels with reduced products.
void launch_tensor_cores(const ProblemArgs<float>& args, int device, void* stream);

// Blocks of the tiled kernel that a multiprocessor of `device` holds at once.
template <class T>
int tiled_blocks_each(int device, int actions);

DeviceLimits device_limits(int device);
// Why these kernels cannot run on the device; empty: they can.
std::string device_error(int device);

}  // namespace trpo_fast::cuda
