#include <memory>

#include "cpu/network/sampling.h"
#include "python/gil.h"
#include "python/head_arg.h"
#include "python/register.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

constexpr const char* kWhat = "this rollout's sampling";
// Multiplications below which a step is over before another thread would use the lock well.
constexpr Index kQuickStep = 1 << 20;

template <class T>
class BoundSampling {
 public:
  BoundSampling(const py::sequence& layers, Index input_width, const py::dict& head_args,
                const py::object& log_std, int threads) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
    policy_.layers = layers_arg<T>(layers, input_width);
    const HeadArg head = HeadArg::of(head_args, policy_.layers.back().out);
    policy_.head_kind = head.kind;
    policy_.nvec = head.nvec;
    policy_.parts = head.parts;
    mask_width_ = head.mask_width;
    categories_ = head.facts.categories;
    policy_.actions = head.actions;
    normal_noise_ = head.facts.normal_noise;
    policy_.threads = threads;
    const auto parameter = head.log_std<T>(log_std);
    policy_.log_std = parameter.data;
    policy_.log_std_stride = parameter.stride;
  }

  std::size_t workspace_bytes() const { return Sampling<T>::workspace_bytes(policy_); }

  // The parameters are read here; the buffers at each step.
  void bind(std::uintptr_t workspace, const py::dict& args) {
    const Exclusive only(busy_, kWhat);
    const TensorArg observations(args["observations"], "observations", 3);
    observations.require_contiguous();
    RolloutBuffers<T> b{};
    b.steps = observations.size(0) - 1;
    b.envs = observations.size(1);
    b.inputs = policy_.layers.front().in;
    b.actions = policy_.actions;
    b.mask_width = mask_width_;
    observations.require_size(2, b.inputs);
    if (args["wide"].cast<bool>()) {
      b.wide = shown<double>(observations, args, b.inputs);
    } else {
      b.narrow = shown<float>(observations, args, b.inputs);
    }
    b.clip = args["clip"].cast<double>();
    b.masks = rows<const std::uint8_t>(args, "masks", b, b.mask_width);
    if (normal_noise_) b.normal = rows<const T>(args, "noise", b, b.actions);
    if (!normal_noise_) b.other = rows<const double>(args, "noise", b, b.actions);
    if (categories_) {
      b.category = rows<std::int64_t>(args, "actions", b, b.actions);
      b.env_category = rows<std::int64_t>(args, "env_actions", b, b.actions);
      b.start = vector<const std::int64_t>(args, "low", b.actions);
    } else {
      b.real = rows<T>(args, "actions", b, b.actions);
      b.env_real = rows<T>(args, "env_actions", b, b.actions);
      b.low = vector<const T>(args, "low", b.actions);
      b.high = vector<const T>(args, "high", b.actions);
    }
    b.log_prob = rows<double>(args, "log_prob", b, 1);
    check_buffers(b);
    buffers_ = b;
    quick_ = b.envs * multiplications() < kQuickStep;
    sampling_ = std::make_unique<Sampling<T>>(policy_, reinterpret_cast<void*>(workspace));
  }

  void step(Index t) {
    const Exclusive only(busy_, kWhat);
    if (sampling_ == nullptr) throw py::value_error("bind() a workspace first");
    if (t < 0 || t >= buffers_.steps) {
      throw py::index_error("step " + std::to_string(t) + " of a rollout of " +
                            std::to_string(buffers_.steps));
    }
    if (quick_) return sampling_->step(buffers_, t);
    const GilReleased released;
    sampling_->step(buffers_, t);
  }

 private:
  static void check_buffers(const RolloutBuffers<T>& b) {
    const bool action = b.real != nullptr || b.category != nullptr;
    const bool noise = b.normal != nullptr || b.other != nullptr;
    if (b.steps < 1 || !action || !noise || b.log_prob == nullptr) {
      throw py::value_error("a rollout needs steps, noise, actions and log_prob");
    }
    const bool bounds = b.env_real == nullptr || (b.low != nullptr && b.high != nullptr);
    const bool shift = b.env_category == nullptr || b.start != nullptr;
    if (!bounds || !shift) throw py::value_error("env_actions need low and high");
  }

  template <class E>
  static Observations<E> shown(const TensorArg& raw, const py::dict& args, Index inputs) {
    const Observations<E> found{raw.data<const E>(), vector<const E>(args, "mean", inputs),
                                vector<const E>(args, "scale", inputs)};
    if ((found.mean == nullptr) != (found.scale == nullptr)) {
      throw py::value_error("mean and scale go together");
    }
    return found;
  }

  Index multiplications() const {
    Index total = 0;
    for (const Layer<T>& layer : policy_.layers) total += layer.in * layer.out;
    return total;
  }

  template <class Element>
  static Element* vector(const py::dict& args, const char* name, Index size) {
    return optional_arg<Element>(args[name], name, {size});
  }

  // [T, B, width]
  template <class Element>
  static Element* rows(const py::dict& args, const char* name, const RolloutBuffers<T>& b,
                       Index width) {
    return optional_arg<Element>(args[name], name, {b.steps, b.envs, width});
  }

  SamplingPolicy<T> policy_;
  bool normal_noise_, categories_;
  Index mask_width_;
  RolloutBuffers<T> buffers_{};
  bool quick_ = true;
  std::unique_ptr<Sampling<T>> sampling_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

template <class T>
void register_kind(py::module_& m, const char* name) {
  using Bound = BoundSampling<T>;
  py::class_<Bound>(m, name)
      .def(py::init<const py::sequence&, Index, const py::dict&, const py::object&, int>(),
           py::arg("layers"), py::arg("input_width"), py::arg("head"), py::arg("log_std"),
           py::arg("threads"))
      .def("workspace_bytes", &Bound::workspace_bytes)
      .def("bind", &Bound::bind, py::arg("workspace"), py::arg("buffers"))
      .def("step", &Bound::step, py::arg("t"));
}

}  // namespace

void register_sampling(py::module_& m) {
  register_kind<float>(m, "SamplingF32");
  register_kind<double>(m, "SamplingF64");
}

}  // namespace trpo_fast
