// One step of a rollout: normalise the observations, forward pass, draw actions from noise that was
// drawn before the rollout, their log-probabilities, and the actions as the environment takes them.
#pragma once

#include "common/heads.h"
#include "cpu/network/mlp_forward.h"

namespace trpo_fast {

// The policy at its parameters of now.
template <class T>
struct SamplingPolicy {
  Layers<T> layers;
  int head_kind;                // its place in Heads
  Index actions;                // A; blocks of a categorical head
  std::vector<Index> nvec;      // sizes of the categorical blocks
  std::vector<HeadPart> parts;  // of a joint head
  const T* log_std;             // [scales] or null
  Index log_std_stride;
  int threads;

  Head head() const {
    return {head_kind, layers.back().out, actions, nvec.data(), parts.data(), Index(parts.size())};
  }
};

// Observations in the width that the environments gave them, and what is shown of them.
template <class E>
struct Observations {
  const E* raw;           // [T + 1, B, O], or null: they are of the other width
  const E *mean, *scale;  // [O]: clip((x - mean) scale), or null for x
};

// The contiguous buffers of T steps in B environments; `real` or `category` by the head.
template <class T>
struct RolloutBuffers {
  Index steps, envs, inputs, actions, mask_width;
  Observations<float> narrow;
  Observations<double> wide;
  double clip;
  const T* normal;                        // [T, B, A] or null
  const double* other;                    // [T, B, A] or null, see RowNoise
  const std::uint8_t* masks;              // [T, B, mask_width] or null
  T *real, *env_real;                     // [T, B, A] as drawn; clamped to low .. high, or null
  const T *low, *high;                    // [A]
  std::int64_t *category, *env_category;  // [T, B, A] as drawn; start added, or null
  const std::int64_t* start;              // [A]
  double* log_prob;                       // [T, B]
};

template <class T>
class Sampling {
 public:
  Sampling(const SamplingPolicy<T>& policy, void* workspace);
  static std::size_t workspace_bytes(const SamplingPolicy<T>& policy);

  // Reads observations[t] and writes everything else at t.
  void step(const RolloutBuffers<T>& buffers, Index t) const;

 private:
  Sampling(const SamplingPolicy<T>& policy, Arena&& arena);
  template <class E>
  void show(const Observations<E>& from, const RolloutBuffers<T>& buffers, Index row, Index rows,
            T* x) const;
  template <class H>
  void draw(const H& head, const RolloutBuffers<T>& buffers, Index row, const T* outputs) const;

  const Kernels<T>& kernels_;
  PackedNetwork<T> network_;
  std::vector<Index> nvec_;
  std::vector<HeadPart> parts_;
  Head head_;
  int threads_;
  Index panel_size_, input_size_, scratch_size_;
  double *log_std_, *inv_std_, *std_;  // [scales]
  T* scratch_;                         // of each thread: inputs, two panels, a row of outputs
};

}  // namespace trpo_fast
