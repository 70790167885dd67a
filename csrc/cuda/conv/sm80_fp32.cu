// The convolution in fp32, multiplied in tf32 by the tensor cores. No tile has 128 channels, since an epilogue thread
// would have two groups of them.
#include "sm80.cuh"

namespace atrous::cuda {

cudaError_t conv_fp32(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  switch (plan.tile) {
    case Tile::t64x64:
      return launch_tile<Shape<float, 64, 64, 16, 32, 32, 5>>(problem, plan, workspace, stream);
    case Tile::t128x64:
    case Tile::stem:
      return launch_tile<Shape<float, 128, 64, 16, 64, 32, 4>>(problem, plan, workspace, stream);
    case Tile::t128x128:
    case Tile::t256x128:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace atrous::cuda
