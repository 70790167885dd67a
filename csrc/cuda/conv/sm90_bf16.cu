// The convolution in bf16 for compute capability 9.0.
#include "sm90.cuh"

namespace atrous::cuda {

cudaError_t conv_sm90_bf16(const ConvProblem& problem, const ConvPlan& plan, void*, cudaStream_t stream) {
  return sm90::launch_conv<cutlass::bfloat16_t>(problem, plan, stream);
}

}  // namespace atrous::cuda
