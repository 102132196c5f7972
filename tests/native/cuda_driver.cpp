// Drives csrc/cuda as host code (emulation/), without Python, for AddressSanitizer and
// UndefinedBehaviorSanitizer (`make sanitize`): every head, odd widths, several blocks, both panel
// sizes, weights in shared memory and not, and in tiles. The answers are compared with the CPU
// core's; with threads and blocks run in other orders they must keep their bits, or a barrier is
// missing.
#include <cstring>
#include <memory>
#include <stdexcept>

#include "cpu/conjugate_gradient.h"
#include "cpu/kernels/dispatch.h"
#include "cpu/trust_region.h"
#include "cuda/plan.h"
#include "emulation/cuda_runtime.h"
#include "fixture.h"

using namespace trpo_fast;

namespace {

template <class T>
double distance(const std::vector<T>& a, const std::vector<T>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double(a[i]) - double(b[i]), 2);
    size += std::pow(double(b[i]), 2);
  }
  return std::sqrt(difference / (size + 1e-30));
}

// Where packed vectors find their elements; as packed_map of backends/cuda/layout.py.
template <class T>
std::vector<int> packed_map(const PolicyBatch<T>& batch, const cuda::NetworkPlan& network) {
  std::vector<int> map(std::size_t(network.packed), -1);
  for (int l = 0; l < network.count; ++l) {
    const cuda::LayerPlan& layer = network.layers[l];
    const LayerOffsets at = batch.offsets[std::size_t(l)];
    for (int o = 0; o < layer.out; ++o) {
      for (int i = 0; i <= layer.in; ++i) {
        const Index from = i < layer.in ? at.weight + o * layer.in + i : at.bias + o;
        map[std::size_t(layer.weight + i * layer.out_padded + o)] = int(from);
      }
    }
  }
  for (Index a = 0; a < scales_of(batch.head()); ++a) {
    map[std::size_t(network.log_std + a)] = int(batch.log_std_offset + a);
  }
  return map;
}

// The batch on the emulated device, and every result of one kind after another.
template <class T>
class Device {
 public:
  Device(const Fixture<T>& f, bool tiled, cuda::Products how = cuda::Products::exact)
      : batch_(f.batch), theta_(f.theta) {
    const MatrixView<const T>& view = batch_.rows.obs;
    for (Index row = 0; row < view.rows; ++row) {
      for (Index c = 0; c < view.cols; ++c) obs_.push_back(view.data[row * view.row_stride + c]);
    }
    std::vector<cuda::LayerShape> shapes;
    for (const Layer<T>& layer : batch_.layers) {
      shapes.push_back({layer.in, layer.out, layer.activation, double(layer.parameter)});
    }
    const Head head = batch_.head();
    const Index log_std = scales_of(head);
    a_.network = cuda::network_plan(shapes, log_std, 0, tiled);
    map_ = packed_map(batch_, a_.network);
    a_.map = map_.data();
    a_.theta = theta_.data();
    a_.parameters = batch_.parameters;
    a_.head_kind = batch_.head_kind;
    a_.shared_metric = facts_of(batch_.head_kind).shared_metric;
    a_.scales = int(log_std);
    a_.metric_width = int(metric_width_of(head));
    a_.mask_width = int(mask_width_of(head));
    a_.part_count = int(batch_.parts.size());
    std::copy(batch_.parts.begin(), batch_.parts.end(), a_.parts);
    a_.outputs = int(batch_.layers.back().out);
    a_.actions = int(batch_.actions);
    std::copy(batch_.nvec.begin(), batch_.nvec.end(), a_.nvec);
    a_.rows = rows(batch_.rows, &sums_[0]);
    a_.fisher_is_all = batch_.fisher_is_all;
    a_.fisher_rows = a_.fisher_is_all ? a_.rows : rows(batch_.fisher_rows, &sums_[1]);
    const bool categories = facts_of(batch_.head_kind).categories;
    a_.real_actions = categories ? nullptr : batch_.first_action.real;
    a_.category_actions = categories ? batch_.first_action.category : nullptr;
    a_.advantages = batch_.advantages;
    a_.kl_new_old = batch_.kl_new_old;
    const cuda::DeviceLimits limits = cuda::device_limits(0);
    a_.products = how;
    a_.plan = tiled
                  ? cuda::tiled_plan(a_.network, a_.rows.rows, a_.actions, sizeof(T), limits, 1)
                  : cuda::launch_plan(a_.network, a_.rows.rows, a_.actions, sizeof(T), limits, how);
    memory_ = std::make_unique<Memory>(cuda::lay_out(a_, nullptr));
    cuda::lay_out(a_, memory_->get());
    a_.figures = figures;
  }

  std::vector<T> run(cuda::Task task, const std::vector<T>& vector, const UpdateOptions& options) {
    std::vector<T> result(std::size_t(batch_.parameters), T(0));
    if (task == cuda::Task::update) result = theta_;
    a_.task = task;
    a_.vector = vector.data();
    a_.result = result.data();
    a_.options = options;
    cuda::launch(a_, 0, nullptr);
    a_.fisher_ready = true;
    return result;
  }

  double figures[cuda::kFigures] = {};

 private:
  static cuda::RowSet<T> with(const RowSet<T>& set, const T* obs, const double* sum) {
    return {obs, set.weights, set.weights ? sum : nullptr, set.mask, set.obs.rows};
  }
  cuda::RowSet<T> rows(const RowSet<T>& set, double* sum) const {
    for (Index row = 0; row < set.obs.rows; ++row) *sum += set.weight(row);
    return with(set, obs_.data(), sum);
  }

  const PolicyBatch<T>& batch_;
  std::vector<T> theta_, obs_;
  std::vector<int> map_;
  double sums_[2] = {};
  std::unique_ptr<Memory> memory_;
  cuda::ProblemArgs<T> a_{};
};

// F v by tensor cores in panels, as far as the plan allows; the same bits in another order.
void drive_tensor_cores(const Fixture<float>& f, const std::vector<float>& v,
                        const std::vector<float>& expected, const UpdateOptions& options) {
  // For bfloat16 those of docs/precision.md; few numbers round as they happen to, as in its tests.
  constexpr double bounds[] = {0, 1.0 / 512, 1.0 / 128, 1.0 / 32768};
  const bool few = f.batch.rows.obs.rows == 1 || f.batch.layers.front().out == 1;
  for (const auto how : {cuda::Products::tf32, cuda::Products::bf16, cuda::Products::bf16x3}) {
    std::vector<float> found[2];
    try {
      for (const unsigned order : {0u, 7u}) {
        emulation::set_order(order);
        found[order != 0] = Device<float>(f, false, how).run(cuda::Task::product, v, options);
      }
    } catch (const std::invalid_argument&) {
      continue;  // too wide, or too large for the device: tiles serve it
    }
    const double error = distance(found[0], expected);
    const double bound = (few ? 3 : 1) * bounds[int(how)];
    check(error <= bound, "F v by tensor cores", error, bound);
    check(found[0] == found[1], "tensor cores in every order", distance(found[1], found[0]), 0);
  }
}

template <class T>
void drive(const Shape& shape, bool tiled) {
  const Fixture<T> f(shape);
  const Memory memory(PolicyProblem<T>::workspace_bytes(f.batch));
  PolicyProblem<T> cpu(f.batch, memory.get());
  const Kernels<T>& kernels = dense_kernels().get<T>();
  const Index n = f.batch.parameters;
  const double tolerance = sizeof(T) == 4 ? 1e-4 : 1e-11;
  // Few iterations: further ones amplify rounding, on the CPU's own instruction sets as much as
  // here.
  const UpdateOptions options{
      Constraint::hard, StepSize::boundary, 0.01, 0.1, 1, 1, 0.8, 0, 10, {3, 1e-4, 0}, 1};
  const std::vector<T> none, v = normal<T>(n, 1);
  const auto size = std::size_t(n);

  std::vector<T> g(size), Fv(size), candidate(f.theta);
  const double loss = cpu.gradient(g.data());
  cpu.fisher_product(v.data(), 0, Fv.data());
  auto never = [] { return false; };
  std::vector<T> work(5 * size);
  T* const w = work.data();
  TrustRegion<T, PolicyProblem<T>, decltype(never)> region(cpu, nullptr, kernels, n, options,
                                                           never);
  const UpdateResult expected = region.update(
      f.theta.data(), {w, {w + n, w + 2 * n, nullptr, w + 3 * n, w + 4 * n}}, candidate.data());

  Device<T> device(f, tiled);
  emulation::set_order(0);
  const std::vector<T> gradient = device.run(cuda::Task::gradient, none, options);
  check(distance(gradient, g) <= tolerance, "gradient", distance(gradient, g), 0);
  check_close("loss", device.figures[cuda::kLossBefore], loss, tolerance);
  const std::vector<T> product = device.run(cuda::Task::product, v, options);
  check(distance(product, Fv) <= tolerance, "F v", distance(product, Fv), 0);
  const std::vector<T> updated = device.run(cuda::Task::update, none, options);
  check(int(device.figures[cuda::kStatus]) == int(expected.status), "status of the update",
        device.figures[cuda::kStatus], int(expected.status));
  if (expected.status == UpdateStatus::accepted) {
    check_close("KL / max_kl", device.figures[cuda::kKl] / options.max_kl,
                expected.kl / options.max_kl, 20 * tolerance);
    check_close("loss after", device.figures[cuda::kLossAfter], expected.loss_after,
                20 * tolerance);
  } else {
    check(distance(updated, f.theta) == 0, "parameters left alone", distance(updated, f.theta), 0);
  }
  if constexpr (sizeof(T) == 4) {
    if (!tiled) drive_tensor_cores(f, v, Fv, options);
  }
  for (const unsigned order : {1u, 7u}) {
    emulation::set_order(order);
    const std::vector<T> again = Device<T>(f, tiled).run(cuda::Task::update, none, options);
    check(std::memcmp(again.data(), updated.data(), size * sizeof(T)) == 0,
          "the same bits in every order", distance(again, updated), 0);
  }
}

}  // namespace

int main() {
  const std::vector<std::vector<Index>> networks{{},    {1},       {64, 64}, {17, 65},
                                                 {128}, {3, 3, 3}, {9, 140}};
  const Activation activations[] = {Activation::tanh,     Activation::relu, Activation::silu,
                                    Activation::softplus, Activation::elu,  Activation::gelu};
  int i = 0;
  for (const Index rows : {Index(1), Index(17), Index(200)}) {
    for (std::size_t network = 0; network < networks.size(); ++network) {
      const std::vector<Index>& hidden = networks[network];
      for (int kind = 0; kind < Heads::kCount; ++kind, ++i) {
        // Emulated, many rows take long: of those a third of the heads for each network, in turn.
        if (rows > 100 && std::size_t(kind) % 3 != network % 3) continue;
        Shape shape{
            rows,       Index(1 + i % 19), hidden,     kind,    1 + i % 5, {}, activations[i % 6],
            i % 2 == 0, i % 3 == 0,        i % 4 == 0, 1 << 20, 1};
        if (i % 7 == 0) shape.obs += 140;  // more inputs than a panel buffer has columns
        complete(shape, i, 24);
        emulation::device().multiprocessors = 1 + i % 3;
        // Too little for the weights every other time.
        emulation::device().shared_bytes = i % 2 == 0 ? 227 << 10 : 120 << 10;
        drive<float>(shape, false);
        if (i % 3 == 0) drive<double>(shape, false);
        if (i % 4 == 0) drive<float>(shape, true);
        if (i % 8 == 1) drive<double>(shape, true);
      }
    }
  }
  std::printf("CUDA kernels as host code: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
