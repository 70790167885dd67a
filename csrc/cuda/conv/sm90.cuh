// Implicit GEMM by CUTLASS 3.x for compute capability 9.0 with our epilogue: TMA's im2col mode gathers x, and a warp
// group multiplies from shared memory (wgmma). Types and launch; conv/heuristics.cpp selects these kernels.
#pragma once

#include <optional>

#include "sm90_persistent.cuh"

#include "../static_switch.h"
#include "problem.h"

namespace atrous::cuda::sm90 {

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool BUILT = false;
#else
constexpr bool BUILT = true;
#endif

using Sizes = cutlass::conv::ConvProblemShape<cutlass::conv::Operator::kFprop, 2>;

// A tile of M pixels x N channels, 64 channels of x per step, 128 pixels per warp group. STAGES fill shared memory for
// the BLOCKS that fit into the registers: 128 x 128 accumulators are 128 registers in each of 128 threads.
template <class Element, int M, int N, Slope SLOPE, Residual RESIDUAL>
struct ImplicitGemm {
  static constexpr int GROUPS = M / 128, BLOCKS = M * N == 128 * 64 ? 2 : 1, STAGES = M * N == 128 * 128 ? 6 : 4;
  using Tile = cute::Shape<Int<M>, Int<N>, cute::Shape<_64>>;
  using Layout = cutlass::layout::TensorNHWC;
  using Cluster = cute::Shape<Int<GROUPS>, _1, _1>;  // its blocks share the weight
  using ResidualElement = std::conditional_t<RESIDUAL == Residual::none, void, Element>;
  using Schedule = std::conditional_t<GROUPS == 1, cutlass::epilogue::TmaWarpSpecialized,
                                      cutlass::epilogue::TmaWarpSpecializedCooperative>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, ResidualElement, Layout, 8, Element, Layout, 8,
      Schedule, EpilogueNode<Element, M, N, SLOPE, RESIDUAL>>::CollectiveOp;
  // CUTLASS builds this for one warp group. Main replaces its MMA by one whose instructions are laid out over GROUPS.
  using Built = typename cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, cutlass::conv::Operator::kFprop, Element, Layout, 8, Element,
      Layout, 8, float, Tile, Cluster, cutlass::conv::collective::StageCount<STAGES>,
      cutlass::conv::KernelImplicitTmaWarpSpecializedSm90>::CollectiveOp;
  using Instruction = decltype(cute::GMMA::ss_op_selector<Element, Element, float, Tile>());
  using Mma = decltype(cute::make_tiled_mma(Instruction(), cute::Layout<cute::Shape<Int<GROUPS>, _1, _1>>()));
  template <class Copy, class Shared>
  using Traits = cutlass::conv::collective::detail::Sm90ImplicitGemmTileTraits<Copy, Shared>;
  using Main =
      cutlass::conv::collective::CollectiveConv<typename Built::DispatchPolicy, Tile, Element, Element, Mma,
                                                Traits<typename Built::GmemTiledCopyA, typename Built::SmemLayoutA>,
                                                Traits<typename Built::GmemTiledCopyB, typename Built::SmemLayoutB>>;
  using Single = cutlass::conv::kernel::ConvUniversal<Sizes, Main, Epilogue>;  // one tile per block
  using Kernel = std::conditional_t<GROUPS == 1, Single, Persistent<Single, N>>;
  using Params = typename Kernel::Params;
  static constexpr int THREADS = Kernel::MaxThreadsPerBlock;
  static constexpr int BYTES = sizeof(Values<N>) + Kernel::SharedStorageSize;
  // A multiprocessor has 228 KiB, and each block takes 1 KiB more than it asks for.
  static_assert(BLOCKS * (BYTES + 1024) <= 228 << 10);

  static dim3 grid(const Params& params, int multiprocessors) {
    if constexpr (GROUPS > 1)
      return Kernel::grid(params, multiprocessors);
    else
      return Kernel::get_grid_shape(params);
  }
};

// Empty unless it is compiled for sm_90a. Elsewhere its launch bounds prevent a launch.
template <class Element, int M, int N, Slope SLOPE, Residual RESIDUAL>
__global__ void __launch_bounds__(BUILT ? ImplicitGemm<Element, M, N, SLOPE, RESIDUAL>::THREADS : 32,
                                  BUILT ? ImplicitGemm<Element, M, N, SLOPE, RESIDUAL>::BLOCKS : 1)
    conv_sm90_kernel(const __grid_constant__ typename ImplicitGemm<Element, M, N, SLOPE, RESIDUAL>::Params params,
                     const __grid_constant__ ChannelVectors vectors) {
  if constexpr (BUILT) {
    using KernelTypes = ImplicitGemm<Element, M, N, SLOPE, RESIDUAL>;
    char* const memory = reinterpret_cast<char*>(&values<N>() + 1);
    if constexpr (KernelTypes::GROUPS > 1) {
      typename KernelTypes::Kernel(params, vectors, memory)();
    } else {
      values<N>().load(vectors, int(blockIdx.y) * N, cute::get<1>(params.problem_shape));
      typename KernelTypes::Kernel()(params, memory);
    }
  }
}

// CUTLASS's problem: sizes as (n, h, w, c), and the padding before and after.
inline Sizes sizes_of(const ConvProblem& p) {
  const auto pair = [](const int64_t (&both)[2]) { return cute::array<int, 2>{int(both[0]), int(both[1])}; };
  return {cutlass::conv::Mode::kCrossCorrelation,
          cute::array<int, 4>{int(p.n), int(p.h), int(p.w), int(p.c)},
          cute::array<int, 4>{int(p.k), int(p.r), int(p.s), int(p.c)},
          pair(p.padding),
          pair(p.padding),
          pair(p.stride),
          pair(p.dilation),
          1};
}

template <class ImplicitGemm>
typename ImplicitGemm::Kernel::Arguments arguments(const ConvProblem& p) {
  using Element = typename ImplicitGemm::Kernel::ElementA;
  const typename ImplicitGemm::Epilogue::StrideD dense{{p.k, p.q * p.k, p.p * p.q * p.k}, {}, {}};
  return {sizes_of(p),
          {static_cast<const Element*>(p.x), static_cast<const Element*>(p.weight)},
          {{}, static_cast<const Element*>(p.residual), dense, static_cast<Element*>(p.y), dense}};
}

template <class Element, int M, int N>
cudaError_t launch_tile(const ConvProblem& problem, int multiprocessors, cudaStream_t stream) {
  return with_slope(problem.slope, problem.place, [&](auto slope, auto place) {
    using KernelTypes = ImplicitGemm<Element, M, N, slope, place>;
    const auto kernel = conv_sm90_kernel<Element, M, N, slope, place>;
    const auto values = arguments<KernelTypes>(problem);
    if (!KernelTypes::Kernel::can_implement(values)) return cudaErrorNotSupported;
    driver_error = CUDA_SUCCESS;
    const typename KernelTypes::Params params = KernelTypes::Kernel::to_underlying_arguments(values, nullptr);
    if (driver_error != CUDA_SUCCESS) return cudaError_t(driver_error);  // the runtime's error codes equal the driver's
    const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, KernelTypes::BYTES);
    if (allowed != cudaSuccess) return allowed;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {KernelTypes::GROUPS, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = KernelTypes::grid(params, multiprocessors);
    config.blockDim = dim3(KernelTypes::THREADS);
    config.dynamicSmemBytes = KernelTypes::BYTES;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, params, problem.vectors);
  });
}

// True if the current GPU's code is that for sm_90a, as a kernel's launch bounds show; nothing if the query failed.
template <class Element>
std::optional<bool> built() {
  cudaFuncAttributes attributes{};
  const auto kernel = conv_sm90_kernel<Element, 128, 64, Slope::relu, Residual::none>;
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
    cudaGetLastError();  // no code for this GPU at all: the launch of any other kernel reports it
    return std::nullopt;
  }
  return attributes.maxThreadsPerBlock >= 256;
}

template <class Element>
cudaError_t launch_conv(const ConvProblem& problem, const ConvPlan& plan, cudaStream_t stream) {
  switch (plan.tile) {
    case cuda::Tile::t256x128:
      return launch_tile<Element, 256, 128>(problem, plan.multiprocessors, stream);
    case cuda::Tile::t128x64:
      return launch_tile<Element, 128, 64>(problem, plan.multiprocessors, stream);
    case cuda::Tile::t128x128:
      return launch_tile<Element, 128, 128>(problem, plan.multiprocessors, stream);
    case cuda::Tile::t64x64:
    case cuda::Tile::stem:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace atrous::cuda::sm90
