// The products in fp32, whose factors the tensor cores round to tf32. No tile has 128 channels: a thread of the
// epilogue would have two groups of them.
#include "conv_kernel.cuh"

namespace atrous::cuda {

cudaError_t conv_fp32(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  switch (plan.tile) {
    case Tile::few:
      return run<Shape<float, 128, 64, 16, 64, 32, 4, true>>(problem, stream);
    case Tile::t64x64:
      return run_splits<Shape<float, 64, 64, 16, 32, 32, 5>>(problem, plan, workspace, stream);
    default:
      return run<Shape<float, 128, 64, 16, 64, 32, 4>>(problem, stream);
  }
}

}  // namespace atrous::cuda
