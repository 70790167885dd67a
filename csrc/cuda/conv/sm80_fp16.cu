// The convolution in fp16.
#include "sm80.cuh"

namespace atrous::cuda {

cudaError_t conv_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return launch_16_bit<cutlass::half_t>(problem, plan, workspace, stream);
}

}  // namespace atrous::cuda
