// The convolution in fp16 for compute capability 9.0.
#include <atomic>

#include "sm90.cuh"

namespace atrous::cuda {

cudaError_t conv_sm90_fp16(const ConvProblem& problem, const ConvPlan& plan, void*, cudaStream_t stream) {
  return sm90::launch_conv<cutlass::half_t>(problem, plan, stream);
}

bool conv_sm90_built() {
  // GPUs of one compute capability run the same code, so an answer holds for the process. A query that failed has none:
  // it may fail for a reason that passes, such as the lack of memory to load the code.
  static std::atomic<int> known{-1};
  if (const int answer = known.load(std::memory_order_relaxed); answer >= 0) return answer == 1;
  const std::optional<bool> built = sm90::built<cutlass::half_t>();
  if (built) known.store(*built, std::memory_order_relaxed);
  return built.value_or(false);
}

}  // namespace atrous::cuda
