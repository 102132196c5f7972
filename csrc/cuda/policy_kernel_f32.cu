#include "launch.cuh"

namespace trpo_fast::cuda {

template <>
void launch(const ProblemArgs<float>& args, int device, void* stream) {
  if (args.plan.tiled) return launch_in_tiles(args, device, stream);
  if (args.plan.panel_rows == kSmallPanelRows) {
    launch_rows<float, kSmallPanelRows>(args, device, stream);
  } else {
    launch_rows<float, kPanelRows>(args, device, stream);
  }
}

}  // namespace trpo_fast::cuda
