// The products in fp32, whose factors the tensor cores round to tf32. No tile has 128 channels: a thread of the
// epilogue would have two groups of them.
#include "sm80.cuh"

namespace atrous::cuda {

cudaError_t conv_fp32(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  if (plan.tile == Tile::t64x64) return run<Shape<float, 64, 64, 16, 32, 32, 5>>(problem, plan, workspace, stream);
  return run<Shape<float, 128, 64, 16, 64, 32, 4>>(problem, plan, workspace, stream);
}

}  // namespace atrous::cuda
