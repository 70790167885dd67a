// A planned convolution onto a stream. Host code alone.
#include "conv_problem.h"

namespace atrous::cuda {

cudaError_t conv_run(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  if (problem.pixels() == 0 || problem.k == 0) return cudaSuccess;
  const auto product = problem.type == ScalarType::Half       ? plan.tma ? conv_sm90_fp16 : conv_fp16
                       : problem.type == ScalarType::BFloat16 ? plan.tma ? conv_sm90_bf16 : conv_bf16
                                                              : conv_fp32;
  const cudaError_t result = product(problem, plan, workspace, stream);
  if (result != cudaSuccess || plan.splits == 1) return result;
  return conv_reduce(problem, plan.splits, static_cast<const float*>(workspace), stream);
}

}  // namespace atrous::cuda
