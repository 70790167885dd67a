// The convolution in fp16 for compute capability 9.0.
#include "sm90.cuh"

namespace atrous::cuda {

cudaError_t conv_sm90_fp16(const ConvProblem& problem, const ConvPlan& plan, void*, cudaStream_t stream) {
  return sm90::launch_conv<cutlass::half_t>(problem, plan, stream);
}

bool conv_sm90_built() {
  static const bool built = sm90::built<cutlass::half_t>();  // GPUs of one compute capability run the same code
  return built;
}

}  // namespace atrous::cuda
