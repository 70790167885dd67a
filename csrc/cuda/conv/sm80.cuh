// Implicit GEMM by CUTLASS (conv 2.x, tensor cores from sm_80 on) with our epilogue: types and launch.
// Source: Chetlur et al. 2014 (arXiv:1410.0759), implicit GEMM.
#pragma once

#include <cutlass/conv/kernel/default_conv2d_fprop.h>
#include <cutlass/epilogue/thread/conversion_op.h>

#include "../static_switch.h"
#include "epilogue.cuh"
#include "problem.h"

namespace atrous::cuda {

// A kernel's tile: M pixels x N channels x DEPTH of the reduction, the warp's part of it, the stages, and the elements
// of one access to x and the weight.
template <class Element_, int M, int N, int DEPTH, int WARP_M, int WARP_N, int STAGES_,
          int ACCESS_ = 16 / sizeof(Element_)>
struct Shape {
  using Element = Element_;
  using Block = cutlass::gemm::GemmShape<M, N, DEPTH>;
  using Warp = cutlass::gemm::GemmShape<WARP_M, WARP_N, DEPTH>;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 32 / sizeof(Element)>;
  static constexpr int STAGES = STAGES_, VECTOR = 16 / sizeof(Element), ACCESS = ACCESS_;
  // Accumulators per thread, and the blocks that fit into a multiprocessor's registers. Without this bound ptxas spills
  // to fit one block more.
  static constexpr int ACCUMULATORS = WARP_M * WARP_N / 32, BLOCKS = ACCUMULATORS > 64 ? 2 : ACCUMULATORS > 32 ? 3 : 4;
};

// CUTLASS's kernel with this output operator. kUnity is the stride of the dense y, not that of the convolution.
template <class Shape, class OutputOp>
struct ImplicitGemm {
  using Kernel = typename cutlass::conv::kernel::DefaultConv2dFprop<
      typename Shape::Element, cutlass::layout::TensorNHWC, typename Shape::Element, cutlass::layout::TensorNHWC,
      typename OutputOp::ElementOutput, cutlass::layout::TensorNHWC, float, cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80, typename Shape::Block, typename Shape::Warp, typename Shape::Instruction, OutputOp,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<4>, Shape::STAGES, cutlass::arch::OpMultiplyAdd,
      cutlass::conv::IteratorAlgorithm::kOptimized, cutlass::conv::StrideSupport::kUnity, Shape::ACCESS,
      Shape::ACCESS>::Kernel;
  using Params = typename Kernel::Params;
  using Storage = typename Kernel::SharedStorage;
  static constexpr int THREADS = Kernel::kThreadCount;
};

template <class Shape>
using ThreadMap =
    typename cutlass::epilogue::threadblock::DefaultThreadMapTensorOp<typename Shape::Block, typename Shape::Warp, 1,
                                                                      typename Shape::Element, Shape::VECTOR>::Type;

template <class Shape, Slope SLOPE, Residual RESIDUAL>
struct EpilogueOutput
    : EpilogueOp<typename Shape::Element, Shape::VECTOR, ThreadMap<Shape>, Shape::Block::kN, SLOPE, RESIDUAL> {
  using EpilogueOp<typename Shape::Element, Shape::VECTOR, ThreadMap<Shape>, Shape::Block::kN, SLOPE,
                   RESIDUAL>::EpilogueOp;
};

// Raw fp32 accumulators of one split-K slice.
using PartialOutput = cutlass::epilogue::thread::Convert<float, 4, float>;

// Writes one split-K slice's accumulators to the workspace.
template <class Shape>
__global__ void __launch_bounds__(ImplicitGemm<Shape, PartialOutput>::THREADS, Shape::BLOCKS)
    conv_partial_kernel(const __grid_constant__ typename ImplicitGemm<Shape, PartialOutput>::Params params) {
  extern __shared__ __align__(16) char memory[];
  typename ImplicitGemm<Shape, PartialOutput>::Kernel()(
      params, reinterpret_cast<typename ImplicitGemm<Shape, PartialOutput>::Storage&>(memory));
}

template <class Shape, Slope SLOPE, Residual RESIDUAL>
__global__ void __launch_bounds__(ImplicitGemm<Shape, EpilogueOutput<Shape, SLOPE, RESIDUAL>>::THREADS, Shape::BLOCKS)
    conv_epilogue_kernel(const __grid_constant__
                         typename ImplicitGemm<Shape, EpilogueOutput<Shape, SLOPE, RESIDUAL>>::Params params,
                         const __grid_constant__ ChannelVectors vectors) {
  using KernelTypes = ImplicitGemm<Shape, EpilogueOutput<Shape, SLOPE, RESIDUAL>>;
  constexpr int CHANNELS = Shape::Block::kN;
  extern __shared__ __align__(16) char memory[];
  const int tile = typename KernelTypes::Kernel::ThreadblockSwizzle().get_tile_offset(params.swizzle_log_tile).n();
  TileChannels<CHANNELS>::here().load(vectors, tile * CHANNELS, params.problem_size.K);
  typename KernelTypes::Kernel()(params, reinterpret_cast<typename KernelTypes::Storage&>(memory));
}

inline cutlass::conv::Conv2dProblemSize sizes_of(const ConvProblem& p, int splits) {
  return {{int(p.n), int(p.h), int(p.w), int(p.c)},
          {int(p.k), int(p.r), int(p.s), int(p.c)},
          {int(p.padding[0]), int(p.padding[0]), int(p.padding[1]), int(p.padding[1])},
          {int(p.stride[0]), int(p.stride[1])},
          {int(p.dilation[0]), int(p.dilation[1])},
          {int(p.n), int(p.p), int(p.q), int(p.k)},
          cutlass::conv::Mode::kCrossCorrelation,
          splits};
}

// y: the output, or the workspace for the partial sums of every split.
template <class ImplicitGemm>
typename ImplicitGemm::Params parameters(const ConvProblem& problem, int splits, void* y) {
  using Input = typename ImplicitGemm::Kernel::ElementA;
  using Output = typename ImplicitGemm::Kernel::ElementC;
  const cutlass::conv::Conv2dProblemSize sizes = sizes_of(problem, splits);
  const auto reference = [](auto* data, cutlass::layout::TensorNHWC layout) {
    return cutlass::TensorRef<std::remove_pointer_t<decltype(data)>, cutlass::layout::TensorNHWC>(data, layout);
  };
  const auto dense = [&](auto* data, cutlass::Tensor4DCoord extent) {
    return reference(data, cutlass::layout::TensorNHWC::packed(extent));
  };
  const cutlass::layout::TensorNHWC read(problem.x_strides[0], problem.x_strides[1], problem.x_strides[2]);
  const auto input = [](const void* data) { return static_cast<Input*>(const_cast<void*>(data)); };
  const auto output = [](const void* data) { return static_cast<Output*>(const_cast<void*>(data)); };
  return {{sizes,
           reference(input(problem.x), read),
           dense(input(problem.weight), sizes.filter_extent()),
           dense(output(problem.residual), sizes.output_extent()),
           dense(output(y), sizes.output_extent()),
           {},
           cutlass::conv::SplitKMode::kParallel}};
}

template <class ImplicitGemm, class Kernel, class... Args>
cudaError_t launch_gemm(Kernel kernel, const typename ImplicitGemm::Params& params, cudaStream_t stream,
                        const Args&... args) {
  constexpr int BYTES = sizeof(typename ImplicitGemm::Storage);
  static_assert(BYTES + 2048 <= 99 << 10, "every GPU from sm_80 on has 99 KiB per block; TileChannels take up to 2");
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  if (allowed != cudaSuccess) return allowed;
  cudaLaunchConfig_t config{};
  config.gridDim = typename ImplicitGemm::Kernel::ThreadblockSwizzle().get_grid_shape(params.grid_tiled_shape);
  config.blockDim = dim3(ImplicitGemm::THREADS);
  config.dynamicSmemBytes = BYTES;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params, args...);
}

// Launches the tile with its epilogue.
template <class Shape>
cudaError_t launch_fused(const ConvProblem& problem, cudaStream_t stream) {
  return with_slope(problem.slope, problem.place, [&](auto slope, auto place) {
    using KernelTypes = ImplicitGemm<Shape, EpilogueOutput<Shape, slope, place>>;
    return launch_gemm<KernelTypes>(conv_epilogue_kernel<Shape, slope, place>,
                                    parameters<KernelTypes>(problem, 1, problem.y), stream, problem.vectors);
  });
}

// Launches the tile, with its epilogue unless the reduction is split: conv_reduce applies it then.
template <class Shape>
cudaError_t launch_tile(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  if (plan.splits == 1) return launch_fused<Shape>(problem, stream);
  using Partial = ImplicitGemm<Shape, PartialOutput>;
  return launch_gemm<Partial>(conv_partial_kernel<Shape>, parameters<Partial>(problem, plan.splits, workspace), stream);
}

// Launches the plan's tile for a 16-bit dtype. Its stages take 40 to 64 KiB of shared memory, which every GPU from
// sm_80 on has.
template <class Element>
cudaError_t launch_16_bit(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  switch (plan.tile) {
    case Tile::stem:
      return launch_fused<Shape<Element, 128, 64, 32, 64, 32, 4, STEM_CHANNELS>>(problem, stream);
    case Tile::t64x64:
      return launch_tile<Shape<Element, 64, 64, 32, 32, 32, 5>>(problem, plan, workspace, stream);
    case Tile::t128x64:
      return launch_tile<Shape<Element, 128, 64, 32, 64, 32, 4>>(problem, plan, workspace, stream);
    case Tile::t128x128:
      return launch_tile<Shape<Element, 128, 128, 32, 64, 64, 4>>(problem, plan, workspace, stream);
    case Tile::t256x128:  // for compute capability 9.0 only
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace atrous::cuda
