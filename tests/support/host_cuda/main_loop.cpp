// Replaces the tensor-core main loops of csrc/cuda/conv/sm80_*.cu and sm90_*.cu by plain sums. All the code around
// them, from the ConvProblem to the reduction of splits and the epilogue, runs unchanged.
#include <vector>

#include "../../../csrc/cuda/conv/problem.h"

namespace atrous::cuda {

namespace {

// The contribution of input channels begin .. end to y[image, row, column, k].
template <class S>
float sum(const ConvProblem& p, int64_t image, int64_t row, int64_t column, int64_t k, int64_t begin, int64_t end) {
  const S *x = static_cast<const S*>(p.x), *weight = static_cast<const S*>(p.weight);
  float z = 0;
  for (int64_t r = 0; r < p.r; ++r)
    for (int64_t s = 0; s < p.s; ++s) {
      const int64_t h = row * p.stride[0] - p.padding[0] + r * p.dilation[0],
                    w = column * p.stride[1] - p.padding[1] + s * p.dilation[1];
      if (h < 0 || h >= p.h || w < 0 || w >= p.w) continue;
      for (int64_t c = begin; c < end; ++c)
        z += widen(x[image * p.x_strides[2] + h * p.x_strides[1] + w * p.x_strides[0] + c]) *
             widen(weight[((k * p.r + r) * p.s + s) * p.c + c]);
    }
  return z;
}

// True if each load is aligned as a GPU requires it. A load is of 16 bytes, that of a stem's tile of 4 channels.
template <class S>
bool aligned(const ConvProblem& p, Tile tile) {
  const int64_t access = tile == Tile::stem ? STEM_CHANNELS : 16 / sizeof(S);
  const bool whole = p.c % access == 0 && reinterpret_cast<uintptr_t>(p.x) % (access * sizeof(S)) == 0;
  return whole && p.x_strides[0] % access == 0 && p.x_strides[1] % access == 0 && p.x_strides[2] % access == 0;
}

template <class S>
cudaError_t main_loop(const ConvProblem& p, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  if (!aligned<S>(p, plan.tile)) return cudaErrorMisalignedAddress;
  std::vector<float> whole(plan.splits == 1 ? p.pixels() * p.k : 0);
  float* partial = plan.splits == 1 ? whole.data() : static_cast<float*>(workspace);
  for (int64_t split = 0, at = 0; split < plan.splits; ++split)
    for (int64_t pixel = 0; pixel < p.pixels(); ++pixel)
      for (int64_t k = 0; k < p.k; ++k, ++at)
        partial[at] = sum<S>(p, pixel / (p.p * p.q), pixel / p.q % p.p, pixel % p.q, k, p.c * split / plan.splits,
                             p.c * (split + 1) / plan.splits);
  return plan.splits == 1 ? conv_reduce(p, 1, partial, stream) : cudaSuccess;
}

}  // namespace

cudaError_t conv_fp16(const ConvProblem& p, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return main_loop<Half>(p, plan, workspace, stream);
}
cudaError_t conv_bf16(const ConvProblem& p, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return main_loop<BFloat16>(p, plan, workspace, stream);
}
cudaError_t conv_fp32(const ConvProblem& p, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return main_loop<float>(p, plan, workspace, stream);
}
// The emulated GPU is not of compute capability 9.0.
bool conv_sm90_built() { return false; }
cudaError_t conv_sm90_fp16(const ConvProblem& p, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return conv_fp16(p, plan, workspace, stream);
}
cudaError_t conv_sm90_bf16(const ConvProblem& p, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  return conv_bf16(p, plan, workspace, stream);
}

}  // namespace atrous::cuda
