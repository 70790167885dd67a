// The convolution in bf16.
#include "sm80.cuh"

namespace atrous::cuda {

cudaError_t conv_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return launch_16_bit<cutlass::bfloat16_t>(problem, plan, workspace, stream);
}

}  // namespace atrous::cuda
