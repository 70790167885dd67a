// The implicit matrix product of CUTLASS 3.x for compute capability 9.0 with our epilogue: the memory system gathers x
// (TMA's im2col mode), a warp group multiplies from shared memory (wgmma). Types and launch; conv_plan.cu says when.
#pragma once

// An assert in a kernel is a call, for which ptxas lets no wgmma run beside another.
#ifndef NDEBUG
#define NDEBUG
#endif

// How descriptors of TMA are made: CUTLASS prints and aborts where the driver refuses one, or goes on with nothing
// where asserts are off. We note what the driver says, and launch nothing.
#include <cutlass/cuda_host_adapter.hpp>
#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(encode) \
  [](auto... values) { return atrous::cuda::note(cutlass::call_##encode(values...)); }
namespace atrous::cuda {
inline thread_local CUresult refused = CUDA_SUCCESS;
inline CUresult note(CUresult result) {
  if (result != CUDA_SUCCESS) refused = result;
  return CUDA_SUCCESS;
}
}  // namespace atrous::cuda

#include <cutlass/conv/convolution.h>
#include <cutlass/kernel_hardware_info.hpp>

#include <cute/tensor.hpp>

// after those, which they lack
#include <cute/atom/copy_traits_sm100_im2col.hpp>
#include <cute/atom/copy_traits_sm90_im2col.hpp>
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/kernel/conv_universal.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>

#include "conv_output.cuh"
#include "conv_problem.h"
#include "variants.h"

namespace atrous::cuda::sm90 {

using cute::_0, cute::_1, cute::_64, cute::_128, cute::Int;

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool BUILT = false;
#else
constexpr bool BUILT = true;
#endif

// 128 pixels x N channels, 64 channels of x a step. STAGES fill shared memory for as many BLOCKS as registers have room
// for: 128 x 128 sums are 128 registers of each of 128 threads.
template <int N>
using Tile = cute::Shape<_128, Int<N>, cute::Shape<_64>>;
template <int N>
constexpr int BLOCKS = N == 64 ? 2 : 1;
template <int N>
constexpr int STAGES = N == 64 ? 4 : 6;
using Sizes = cutlass::conv::ConvProblemShape<cutlass::conv::Operator::kFprop, 2>;

// At the start of dynamic shared memory; what follows it is aligned as TMA's swizzle wants.
template <int N>
struct alignas(1024) Values : TileChannels<N> {};
template <int N>
CUTLASS_DEVICE Values<N>& values() {
  extern __shared__ __align__(1024) char memory[];
  return reinterpret_cast<Values<N>&>(memory);
}

// A node of CUTLASS's epilogue visitors: the sums and the residual of a fragment to the output.
template <class Element, int N, Slope SLOPE, Residual RESIDUAL>
struct Ending : cutlass::epilogue::fusion::Sm90VisitorImpl<> {
  using Sm90VisitorImpl<>::Sm90VisitorImpl;
  static constexpr bool ADDS = RESIDUAL != Residual::none;
  CUTLASS_DEVICE bool is_producer_load_needed() const { return ADDS; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return ADDS; }

  // Row: the values of a thread's channels, (elements, m, n, tile m, tile n); Added: its residuals, (elements, m, n)
  template <class Row, class Added>
  struct Store : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    Row scale, shift, slope;
    const Added& added;
    CUTLASS_HOST_DEVICE Store(Row scale, Row shift, Row slope, const Added& added)
        : scale(scale), shift(shift), slope(slope), added(added) {}

    // The output takes the memory of x and the weight: when the whole warp group is through with them.
    CUTLASS_DEVICE bool begin_sync_needed() const { return true; }

    template <int COUNT>
    CUTLASS_HOST_DEVICE auto visit(const cutlass::Array<float, COUNT>& sums, int fragment, int tile_m, int tile_n) {
      using cute::_;
      EpilogueValues<Element, COUNT, SLOPE, RESIDUAL> values;
      typename decltype(values)::Outputs residual;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < COUNT; ++i) {
        const int at = fragment * COUNT + i;
        values.scale[i] = scale(_, _, _, tile_m, tile_n)(at);
        values.shift[i] = shift(_, _, _, tile_m, tile_n)(at);
        if (SLOPE != Slope::relu) values.slope[i] = slope(_, _, _, tile_m, tile_n)(at);
        if (ADDS) residual[i] = added(at);
      }
      return values(sums, residual);
    }
  };

  template <bool SOURCE, class Arguments>
  CUTLASS_HOST_DEVICE static auto store(const Arguments& arguments, TileChannels<N>& channels) {
    const auto row = [&](float* values) {
      const auto tile = cute::make_tensor(cute::make_smem_ptr(values), cute::make_shape(_128{}, Int<N>{}),
                                          cute::make_stride(_0{}, _1{}));
      return cutlass::epilogue::fusion::sm90_partition_for_epilogue<SOURCE>(tile, arguments.epi_tile,
                                                                            arguments.tiled_copy, arguments.thread_idx);
    };
    return Store(row(channels.scale), row(channels.shift), row(channels.slope), arguments.tCrC);
  }
  template <bool SOURCE, class... Types>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::ConsumerStoreArgs<Types...>& arguments) {
    return store<SOURCE>(arguments, values<N>());
  }
};

// CUTLASS's kernel.
template <class Element, int N, Slope SLOPE, Residual RESIDUAL>
struct Product {
  using Layout = cutlass::layout::TensorNHWC;
  using Cluster = cute::Shape<_1, _1, _1>;
  using Added = std::conditional_t<RESIDUAL == Residual::none, void, Element>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile<N>, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Added, Layout, 8, Element, Layout, 8,
      cutlass::epilogue::TmaWarpSpecialized, Ending<Element, N, SLOPE, RESIDUAL>>::CollectiveOp;
  using Main = typename cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, cutlass::conv::Operator::kFprop, Element, Layout, 8, Element,
      Layout, 8, float, Tile<N>, Cluster, cutlass::conv::collective::StageCount<STAGES<N>>,
      cutlass::conv::KernelImplicitTmaWarpSpecializedSm90>::CollectiveOp;
  using Kernel = cutlass::conv::kernel::ConvUniversal<Sizes, Main, Epilogue>;
  using Params = typename Kernel::Params;
  static constexpr int THREADS = Kernel::MaxThreadsPerBlock;
  static constexpr int BYTES = sizeof(Values<N>) + Kernel::SharedStorageSize;
  // A multiprocessor has 228 KiB, of which each block costs 1 beside its own.
  static_assert(BLOCKS<N> * (BYTES + 1024) <= 228 << 10);
};

// Nothing where it is not compiled for sm_90a; nobody can launch it there, with these bounds.
template <class Element, int N, Slope SLOPE, Residual RESIDUAL>
__global__ void __launch_bounds__(BUILT ? 256 : 32, BUILT ? BLOCKS<N> : 1)
    conv_sm90_kernel(const __grid_constant__ typename Product<Element, N, SLOPE, RESIDUAL>::Params params,
                     const __grid_constant__ Vectors vectors) {
  if constexpr (BUILT) {
    values<N>().load(vectors, int(blockIdx.y) * N, cute::get<1>(params.problem_shape));
    typename Product<Element, N, SLOPE, RESIDUAL>::Kernel()(params, reinterpret_cast<char*>(&values<N>() + 1));
  }
}

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

template <class Product>
typename Product::Kernel::Arguments arguments(const ConvProblem& p) {
  using Element = typename Product::Kernel::ElementA;
  const typename Product::Epilogue::StrideD dense{{p.k, p.q * p.k, p.p * p.q * p.k}, {}, {}};
  return {sizes_of(p),
          {static_cast<const Element*>(p.x), static_cast<const Element*>(p.weight)},
          {{}, static_cast<const Element*>(p.residual), dense, static_cast<Element*>(p.y), dense}};
}

template <class Element, int N>
cudaError_t run(const ConvProblem& problem, cudaStream_t stream) {
  return with_slope(problem.slope, problem.place, [&](auto slope, auto place) {
    using Whole = Product<Element, N, slope, place>;
    const auto kernel = conv_sm90_kernel<Element, N, slope, place>;
    const auto values = arguments<Whole>(problem);
    if (!Whole::Kernel::can_implement(values)) return cudaErrorNotSupported;
    refused = CUDA_SUCCESS;
    const typename Whole::Params params = Whole::Kernel::to_underlying_arguments(values, nullptr);
    if (refused != CUDA_SUCCESS) return cudaError_t(refused);  // their numbers agree
    const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Whole::BYTES);
    if (allowed != cudaSuccess) return allowed;
    cudaLaunchConfig_t config{};
    config.gridDim = Whole::Kernel::get_grid_shape(params);
    config.blockDim = dim3(Whole::THREADS);
    config.dynamicSmemBytes = Whole::BYTES;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, params, problem.vectors);
  });
}

// Whether the code of the current card is that for sm_90a: it tells by the bounds of a kernel.
template <class Element>
bool built() {
  cudaFuncAttributes attributes{};
  const auto kernel = conv_sm90_kernel<Element, 64, Slope::relu, Residual::none>;
  const bool found = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  if (!found) cudaGetLastError();  // no code for the card at all: the launch of any other kernel says so
  return found && attributes.maxThreadsPerBlock >= 256;
}

template <class Element>
cudaError_t run(const ConvProblem& problem, const ConvPlan& plan, cudaStream_t stream) {
  return plan.tile == cuda::Tile::t128x64 ? run<Element, 64>(problem, stream) : run<Element, 128>(problem, stream);
}

}  // namespace atrous::cuda::sm90
