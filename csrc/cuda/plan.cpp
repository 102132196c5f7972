#include "cuda/plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace trpo_fast::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <class T>
  void take(T*& pointer, Index count) {
    pointer = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (std::size_t(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::size_t used() const { return used_; }

 private:
  unsigned char* base_;
  std::size_t used_ = 0;
};

}  // namespace

NetworkPlan network_plan(const std::vector<LayerShape>& shapes, Index log_std, Index unused,
                         bool tiled) {
  if (shapes.empty() || shapes.size() > std::size_t(kMaxLayers)) {
    throw std::invalid_argument("the network has " + std::to_string(shapes.size()) +
                                " layers; the kernel serves 1 to " + std::to_string(kMaxLayers));
  }
  NetworkPlan n{};
  n.count = int(shapes.size());
  n.widest = 32;
  n.inputs = tiled ? 0 : -1;
  if (tiled) n.cache_width = int(round_up4(shapes[0].in + 1));
  for (int l = 0; l < n.count; ++l) {
    const LayerShape& shape = shapes[std::size_t(l)];
    LayerPlan& layer = n.layers[l];
    layer.in = int(shape.in);
    layer.out = int(shape.out);
    layer.in_rows = int(round_up4(shape.in + 1));
    layer.in_padded = int(round_up4(shape.in));
    layer.out_padded = int(round_up4(shape.out));
    layer.activation = shape.activation;
    layer.parameter = shape.parameter;
    layer.weight = n.packed;
    n.packed += Index(layer.in_rows) * layer.out_padded;
    layer.backward = n.backward;
    if (l > 0) n.backward += Index(layer.out_padded) * layer.in_padded;
    layer.value = layer.slope = -1;
    n.widest = std::max(n.widest, int(round_up4(shape.out + 1)));
    if (l + 1 == n.count) break;
    layer.value = n.cache_width;
    n.cache_width += int(round_up4(shape.out + 1));
    if (slope_from_output(shape.activation)) continue;
    layer.slope = n.cache_width;
    n.cache_width += layer.out_padded;
  }
  n.log_std = n.packed;
  n.packed = round_up4(n.packed + log_std + unused);
  return n;
}

namespace {

std::size_t scalar_bytes(int panel_rows, int actions, std::size_t element) {
  return scalar_doubles(panel_rows, actions) * sizeof(double) + scalar_elements(actions) * element;
}

std::size_t panel_bytes(const NetworkPlan& network, int panel_rows, int actions,
                        std::size_t element) {
  const std::size_t row = std::size_t(3 * panel_stride(network.widest)) * element;
  return std::size_t(panel_rows) * row + scalar_bytes(panel_rows, actions, element);
}

// Whether a warp's registers hold a row of every layer for tensor cores.
bool narrow(const NetworkPlan& network) {
  for (int l = 0; l < network.count; ++l) {
    if (network.layers[l].out > 8 * kTensorTiles) return false;
  }
  return true;
}

// What tensor_panels.cuh lays out behind the vector.
std::size_t tensor_bytes(const NetworkPlan& network, Products products, int staged) {
  Index words = 0;
  for (int l = 0; l < network.count; ++l) {
    const TensorSizes size = tensor_sizes(network.layers[l], products);
    words += size.sums + (l > 0 ? 2 : 1) * size.forward + size.backward;
  }
  words += Index(kTensorRows) * panel_stride(network.last().out_padded);
  const int word_rows = products == Products::bf16 ? 8 : 16;  // in all parts
  words += 2 * Index(staged) * word_rows * kTensorStride;
  return std::size_t(words) * sizeof(float);
}

// Most rows that pass through shared memory at once within `bytes`; 0: none fit.
int tensor_staged(const NetworkPlan& network, Products products, std::size_t bytes) {
  int staged = kTensorRows / 16;
  while (staged > 0 && tensor_bytes(network, products, staged) > bytes) staged /= 2;
  return staged;
}

// Where the vector may stay in shared memory too, it does; `weights_resident` says so.
void plan_tensor_cores(LaunchPlan& plan, const NetworkPlan& network, Products products,
                       std::size_t limit, std::size_t scalars, std::size_t vector) {
  if (!narrow(network)) throw std::invalid_argument("a layer is too wide for tensor cores");
  const auto staged = [&](std::size_t used) {
    return used < limit ? tensor_staged(network, products, limit - used) : 0;
  };
  plan.staged = staged(scalars + vector);
  plan.weights_resident = plan.weights_resident && plan.staged > 0;
  if (!plan.weights_resident) plan.staged = staged(scalars);
  if (plan.staged == 0) throw std::invalid_argument("the operands of tensor cores do not fit");
}

}  // namespace

bool fits_panels(const NetworkPlan& network, int actions, std::size_t element,
                 const DeviceLimits& device) {
  return panel_bytes(network, kSmallPanelRows, actions, element) <=
         std::size_t(device.shared_bytes);
}

bool fits_tensor_panels(const NetworkPlan& network, int actions, const DeviceLimits& device,
                        Products products) {
  const std::size_t scalars = scalar_bytes(kPanelRows, actions, sizeof(float));
  const std::size_t limit = std::size_t(device.shared_bytes);
  return narrow(network) && scalars <= limit &&
         tensor_staged(network, products, limit - scalars) > 0;
}

LaunchPlan launch_plan(const NetworkPlan& network, Index rows, int actions, std::size_t element,
                       const DeviceLimits& device, Products products) {
  const std::size_t limit = std::size_t(device.shared_bytes);
  const std::size_t vector = std::size_t(network.packed) * element;
  const std::size_t weights = std::size_t(2 * network.packed + network.backward) * element;
  const auto panels = [&](int panel_rows) {
    return panel_bytes(network, panel_rows, actions, element);
  };
  const bool large = element == sizeof(float) && panels(kPanelRows) <= limit &&
                     rows >= Index(kPanelRows) * device.multiprocessors;
  LaunchPlan plan{};
  plan.panel_rows = large ? kPanelRows : kSmallPanelRows;
  const std::size_t scalars = scalar_bytes(plan.panel_rows, actions, element);
  plan.shared_bytes = panels(plan.panel_rows);
  std::size_t others = plan.shared_bytes - scalars;
  if (plan.shared_bytes > limit) {
    throw std::invalid_argument("the network needs " + std::to_string(plan.shared_bytes) +
                                " bytes of shared memory a block, the device has " +
                                std::to_string(limit));
  }
  plan.weights_resident = plan.shared_bytes + vector + weights <= limit;
  const bool exact = products == Products::exact;
  if (!exact) plan_tensor_cores(plan, network, products, limit, scalars, vector);
  const std::size_t operands = exact ? 0 : tensor_bytes(network, products, plan.staged);
  if (plan.weights_resident) others += weights;
  plan.shared_bytes = scalars + (plan.weights_resident ? vector : 0) + std::max(operands, others);
  const Index panels_in_all = (rows + plan.panel_rows - 1) / plan.panel_rows;
  plan.blocks = int(std::min(panels_in_all, Index(device.multiprocessors)));
  plan.partials = plan.blocks;
  return plan;
}

std::size_t tiled_shared_bytes(int actions, std::size_t element) {
  // Two operands, two stages of each.
  const std::size_t tiles = std::size_t(4 * tile_depth(element) * kTileStride) * element;
  return scalar_bytes(kPanelRows, actions, element) + tiles;
}

LaunchPlan tiled_plan(const NetworkPlan& network, Index rows, int actions, std::size_t element,
                      const DeviceLimits& device, int blocks_each) {
  const auto tiles = [](Index n) { return (n + kTile - 1) / kTile; };
  LaunchPlan plan{};
  plan.tiled = true;
  plan.shared_bytes = tiled_shared_bytes(actions, element);
  if (blocks_each < 1 || plan.shared_bytes > std::size_t(device.shared_bytes)) {
    throw std::invalid_argument("the head needs " + std::to_string(plan.shared_bytes) +
                                " bytes of shared memory a block, the device has " +
                                std::to_string(device.shared_bytes));
  }
  plan.panel_rows = kPanelRows;
  // Whole panels: the head's passes write the rows that fill one up.
  plan.chunk_rows = std::min((rows + kPanelRows - 1) / kPanelRows * kPanelRows, kChunkRows);
  Index most = 1;
  for (int l = 0; l < network.count; ++l) {
    const LayerPlan& layer = network.layers[l];
    most = std::max(most, tiles(layer.in) * tiles(layer.out));
  }
  plan.blocks = device.multiprocessors * blocks_each;
  const Index worth = std::min(Index(kMaxSplits), plan.chunk_rows / kSplitRows);
  plan.partials = int(std::max(Index(1), std::min(worth, plan.blocks / most)));
  return plan;
}

template <class T>
std::size_t lay_out(ProblemArgs<T>& a, void* base) {
  Arena arena(base);
  const Index packed = a.network.packed, blocks = a.plan.blocks;
  arena.take(a.weights, packed);
  arena.take(a.backward, a.network.backward);
  arena.take(a.g, packed);
  const bool tiled = a.plan.tiled;
  const Index chunk = tiled ? a.plan.chunk_rows : 0;
  for (T*& rows : a.chunk) arena.take(rows, chunk * a.network.widest);
  if (a.forward_only) {
    arena.take(a.cache, chunk * a.network.cache_width);
    return arena.used();
  }
  for (T** vector : {&a.x, &a.r, &a.p, &a.candidate}) arena.take(*vector, packed);
  arena.take(a.partials, a.plan.partials * packed);
  arena.take(a.log_std_sums, tiled ? blocks * a.scales : 0);
  for (T** vector : {&a.z, &a.rotated[0], &a.rotated[1]}) arena.take(*vector, tiled ? packed : 0);
  const Index spare = a.fisher_is_all ? 0 : tiled ? chunk : blocks * a.plan.panel_rows;
  arena.take(a.cache, (a.fisher_rows.rows + spare) * a.network.cache_width);
  arena.take(a.metric, a.shared_metric ? 0 : a.fisher_rows.rows * a.metric_width);
  arena.take(a.old_outputs, a.rows.rows * a.outputs);
  arena.take(a.row_log_prob, a.rows.rows);
  arena.take(a.sums, grid_sums_elements(int(blocks)));
  return arena.used();
}

template std::size_t lay_out(ProblemArgs<float>&, void*);
template std::size_t lay_out(ProblemArgs<double>&, void*);

}  // namespace trpo_fast::cuda
