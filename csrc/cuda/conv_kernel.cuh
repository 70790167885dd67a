// The implicit matrix product of CUTLASS (conv 2.x, tensor cores from sm_80 on) with our epilogue: types and launch.
// Source: Chetlur et al. 2014 (arXiv:1410.0759), implicit GEMM.
#pragma once

#include <cutlass/conv/kernel/default_conv2d_fprop.h>
#include <cutlass/epilogue/thread/conversion_op.h>

#include "conv_output.cuh"
#include "conv_problem.h"
#include "conv_select.h"

namespace atrous::cuda {

// What fixes a product's code: M pixels x N channels x DEPTH of the reduction, a warp's share of it, and how it loads.
template <class Element_, int M, int N, int DEPTH, int WARP_M, int WARP_N, int STAGES_, bool ANY_CHANNELS>
struct Shape {
  using Element = Element_;
  using Block = cutlass::gemm::GemmShape<M, N, DEPTH>;
  using Warp = cutlass::gemm::GemmShape<WARP_M, WARP_N, DEPTH>;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 32 / sizeof(Element)>;
  static constexpr int STAGES = STAGES_, VECTOR = 16 / sizeof(Element), ALIGNMENT = ANY_CHANNELS ? 1 : VECTOR;
  static constexpr auto ITERATOR =
      ANY_CHANNELS ? cutlass::conv::IteratorAlgorithm::kFewChannels : cutlass::conv::IteratorAlgorithm::kOptimized;
};

template <class Shape, class OutputOp>
using Conv = typename cutlass::conv::kernel::DefaultConv2dFprop<
    typename Shape::Element, cutlass::layout::TensorNHWC, typename Shape::Element, cutlass::layout::TensorNHWC,
    typename OutputOp::ElementOutput, cutlass::layout::TensorNHWC, float, cutlass::arch::OpClassTensorOp,
    cutlass::arch::Sm80, typename Shape::Block, typename Shape::Warp, typename Shape::Instruction, OutputOp,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<4>, Shape::STAGES, cutlass::arch::OpMultiplyAdd,
    Shape::ITERATOR, cutlass::conv::StrideSupport::kStrided, Shape::ALIGNMENT, Shape::ALIGNMENT>::Kernel;

template <class Shape, Slope SLOPE, Residual RESIDUAL>
using Ending =
    EpilogueOp<typename Shape::Element, Shape::VECTOR,
               typename cutlass::epilogue::threadblock::DefaultThreadMapTensorOp<
                   typename Shape::Block, typename Shape::Warp, 1, typename Shape::Element, Shape::VECTOR>::Type,
               Shape::Block::kN, SLOPE, RESIDUAL>;

// The sums of a share of the reduction, as they are.
using Sums = cutlass::epilogue::thread::Convert<float, 4, float>;

// A share of the reduction: its sums into the workspace.
template <class Shape>
__global__ void __launch_bounds__(Conv<Shape, Sums>::kThreadCount)
    conv_partial_kernel(const __grid_constant__ typename Conv<Shape, Sums>::Params params) {
  extern __shared__ __align__(16) char memory[];
  Conv<Shape, Sums>()(params, *reinterpret_cast<typename Conv<Shape, Sums>::SharedStorage*>(memory));
}

template <class Shape, Slope SLOPE, Residual RESIDUAL, class Conv = Conv<Shape, Ending<Shape, SLOPE, RESIDUAL>>>
__global__ void __launch_bounds__(Conv::kThreadCount)
    conv_epilogue_kernel(const __grid_constant__ typename Conv::Params params,
                         const __grid_constant__ ChannelVectors vectors) {
  extern __shared__ __align__(16) char memory[];
  const int tile = typename Conv::ThreadblockSwizzle().get_tile_offset(params.swizzle_log_tile).n();
  TileChannels<Shape::Block::kN>::here().load(vectors, tile * Shape::Block::kN, params.problem_size.K);
  Conv()(params, *reinterpret_cast<typename Conv::SharedStorage*>(memory));
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

// y: what the kernel writes, the output or the sums of every share.
template <class Conv>
typename Conv::Params parameters(const ConvProblem& problem, int splits, void* y) {
  using Input = typename Conv::ElementA;
  using Output = typename Conv::ElementC;
  const cutlass::conv::Conv2dProblemSize sizes = sizes_of(problem, splits);
  const auto dense = [](auto* data, cutlass::Tensor4DCoord extent) {
    return cutlass::TensorRef<std::remove_pointer_t<decltype(data)>, cutlass::layout::TensorNHWC>(
        data, cutlass::layout::TensorNHWC::packed(extent));
  };
  const auto input = [](const void* data) { return static_cast<Input*>(const_cast<void*>(data)); };
  const auto output = [](const void* data) { return static_cast<Output*>(const_cast<void*>(data)); };
  return {{sizes,
           dense(input(problem.x), sizes.activation_extent()),
           dense(input(problem.weight), sizes.filter_extent()),
           dense(output(problem.residual), sizes.output_extent()),
           dense(output(y), sizes.output_extent()),
           {},
           cutlass::conv::SplitKMode::kParallel}};
}

template <class Conv, class... Vectors>
cudaError_t launch(void (*kernel)(const typename Conv::Params, const Vectors...), const typename Conv::Params& params,
                   cudaStream_t stream, const Vectors&... vectors) {
  constexpr int BYTES = sizeof(typename Conv::SharedStorage);
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  if (allowed != cudaSuccess) return allowed;
  cudaLaunchConfig_t config{};
  config.gridDim = typename Conv::ThreadblockSwizzle().get_grid_shape(params.grid_tiled_shape);
  config.blockDim = dim3(Conv::kThreadCount);
  config.dynamicSmemBytes = BYTES;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params, vectors...);
}

template <class Shape>
cudaError_t run(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  if (plan.splits > 1) {
    using Product = Conv<Shape, Sums>;
    return launch<Product>(conv_partial_kernel<Shape>, parameters<Product>(problem, plan.splits, workspace), stream);
  }
  return select_epilogue(problem.slope, problem.place, [&](auto slope, auto place) {
    using Product = Conv<Shape, Ending<Shape, decltype(slope)::value, decltype(place)::value>>;
    return launch<Product>(conv_epilogue_kernel<Shape, decltype(slope)::value, decltype(place)::value>,
                           parameters<Product>(problem, 1, problem.y), stream, problem.vectors);
  });
}

// The stages of a tile fill 40 to 64 KiB of shared memory: every card from sm_80 on has room for it, most for two.
template <class Element>
cudaError_t run_16_bit(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  switch (plan.tile) {
    case Tile::any:
      return run<Shape<Element, 128, 64, 32, 64, 32, 2, true>>(problem, plan, workspace, stream);
    case Tile::t64x64:
      return run<Shape<Element, 64, 64, 32, 32, 32, 5, false>>(problem, plan, workspace, stream);
    case Tile::t128x64:
      return run<Shape<Element, 128, 64, 32, 64, 32, 4, false>>(problem, plan, workspace, stream);
    default:
      return run<Shape<Element, 128, 128, 32, 64, 64, 4, false>>(problem, plan, workspace, stream);
  }
}

}  // namespace atrous::cuda
