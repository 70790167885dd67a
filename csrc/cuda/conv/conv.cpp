// _conv_epilogue: sizes -> ConvProblem -> its tensors -> ConvPlan -> launch.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>

#include "../../convolution.h"
#include "../../kernel_args.h"
#include "../device.h"
#include "../ops.h"
#include "problem.h"

namespace atrous::cuda {

namespace {

// The tile of every convolution, as fixed by conv_tile; empty for the predicted one.
std::atomic<const char*> named_tile{""};

// The zeros that the kernels need around x.
struct ZeroPadding {
  int64_t channels;  // in total
  int64_t margin;    // columns on either side
};

// The memory of a problem, as its kernel accesses it.
struct ConvTensors {
  Tensor x, weight, y;
  OptionalTensor residual;
};

ZeroPadding zero_padding(ScalarType type, int64_t channels, const Sizes& padding, const Sizes& dilation) {
  return {conv_channels(channels, type, dilation[1]), merges_kernel_rows(channels, dilation[1]) ? padding[1] : 0};
}

// The problem's sizes, with x as it is once it is padded.
ConvProblem geometry(ScalarType type, Order order, const Sizes& input, const Sizes& weight, const Sizes& stride,
                     const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const ZeroPadding zeros = zero_padding(type, input[1], padding, dilation);
  const Sizes output = convolution_sizes(input, weight, stride, padding, dilation);
  ConvProblem problem{};
  problem.type = type;
  problem.channels_first = order == Order::channels_first;
  problem.n = input[0], problem.h = input[2], problem.w = input[3] + 2 * zeros.margin;
  problem.c = zeros.channels, problem.k = output[1], problem.p = output[2], problem.q = output[3];
  problem.r = weight[2], problem.s = weight[3];
  problem.x_strides[0] = problem.c;
  problem.x_strides[1] = problem.w * problem.c;
  problem.x_strides[2] = problem.h * problem.w * problem.c;
  for (int i = 0; i < 2; ++i) {
    problem.stride[i] = stride[i];
    problem.padding[i] = padding[i];
    problem.dilation[i] = dilation[i];
  }
  problem.padding[1] -= zeros.margin;
  problem.groups = groups;
  if (merges_kernel_rows(input[1], dilation[1])) merge_kernel_rows(problem);
  return problem;
}

// Returns the tensor in channels_last with its zeros and aligned to 16 bytes: a copy, unless it already is.
Tensor pad_channels_last(const Tensor& tensor, const ZeroPadding& zeros, cudaStream_t stream) {
  const int64_t n = tensor.size(0), c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  if (zeros.channels == c && !zeros.margin) {
    const Tensor same = torch::stable::contiguous(tensor, memory_format(Order::channels_last));
    if (is_aligned(same.const_data_ptr())) return same;
  }
  const Tensor padded = empty_tensor(tensor, {n, zeros.channels, h, w + 2 * zeros.margin}, Order::channels_last);
  const ConvPad pad{tensor.const_data_ptr(),
                    padded.mutable_data_ptr(),
                    tensor.scalar_type(),
                    n,
                    c,
                    h,
                    w,
                    {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)},
                    zeros.channels,
                    zeros.margin};
  if (padded.numel()) check(conv_pad(pad, stream), "_conv_epilogue");
  return padded;
}

ConvTensors prepare(const Tensor& input, const Tensor& weight, const OptionalTensor& residual, const ZeroPadding& zeros,
                    const Sizes& output, cudaStream_t stream) {
  ConvTensors tensors{pad_channels_last(input, zeros, stream), pad_channels_last(weight, {zeros.channels, 0}, stream),
                      empty_tensor(input, output, Order::channels_last), std::nullopt};
  if (residual) tensors.residual = pad_channels_last(*residual, {output[1], 0}, stream);
  return tensors;
}

// Completes a geometry with the memory of its tensors and the epilogue.
ConvProblem describe(ConvProblem problem, const ConvTensors& tensors, const Epilogue& arguments,
                     const OptionalTensor& bias) {
  problem.x = tensors.x.const_data_ptr();
  problem.weight = tensors.weight.const_data_ptr();
  problem.residual = tensors.residual ? tensors.residual->const_data_ptr() : nullptr;
  problem.y = tensors.y.mutable_data_ptr();
  problem.vectors = vectors_of(arguments, bias);
  problem.slope = arguments.slope_kind;
  problem.place = arguments.place();
  return problem;
}

ConvPlan choose_plan(const ConvProblem& problem, const Device& device, std::string_view tile) {
  const int chip = device.capability();
  return conv_plan(problem, {chip, device.multiprocessors(), chip == 90 && conv_sm90_built(), tile});
}

cudaError_t launch_conv(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  const auto main_loop = problem.type == ScalarType::Half       ? plan.tma ? conv_sm90_fp16 : conv_fp16
                         : problem.type == ScalarType::BFloat16 ? plan.tma ? conv_sm90_bf16 : conv_bf16
                                                                : conv_fp32;
  const cudaError_t result = main_loop(problem, plan, workspace, stream);
  if (result != cudaSuccess || plan.splits == 1) return result;
  return conv_reduce(problem, plan.splits, static_cast<const float*>(workspace), stream);
}

}  // namespace

// Fixes the tile of every later conv_epilogue, for measurements and tests; an empty name returns to the predicted tile.
// A convolution that the tile cannot compute is an error.
void conv_tile(std::string name) {
  const char* const known = conv_tile_name(name);
  STD_TORCH_CHECK(known, "_conv_tile: expected one of ", conv_tiles(), ", or nothing, got ", name);
  named_tile = known;
}

// Returns why no kernel computes a convolution of these sizes, "; " between reasons; empty if one does: a kernel takes
// a channels_last output in fp16, bf16 or fp32, groups of 1 and output channels that fill whole vectors of 16 bytes.
std::string geometry_reasons(ScalarType type, bool channels_last, Sizes input, Sizes weight, Sizes stride,
                             Sizes padding, Sizes dilation, int64_t groups) {
  const Order order = channels_last ? Order::channels_last : Order::channels_first;
  return conv_reasons(geometry(type, order, input, weight, stride, padding, dilation, groups));
}

// One launch, or two with split-K or an epilogue that draws. fp32 is multiplied in tf32. Throws conv_reasons unless
// they are empty. A weight with other strides is copied, and so are an input and a weight whose channels do not fill
// whole vectors, as in a stem, and tensors that are not aligned to 16 bytes.
Tensor conv_epilogue(Epilogue& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  if (arguments.draws()) {  // in a second launch: no kernel of a convolution draws
    Epilogue none;
    return epilogue(arguments, conv_epilogue(none, input, weight, bias, stride, padding, dilation, groups));
  }
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  const Device device("input", input);
  device.check("weight", weight);
  device.check("bias", bias);
  device.check(arguments);
  const ScalarType type = input.scalar_type();
  const Order order = convolution_order(input, weight);
  const ConvProblem shape =
      geometry(type, order, to_vector(input.sizes()), to_vector(weight.sizes()), stride, padding, dilation, groups);
  const std::string reasons = conv_reasons(shape);
  STD_TORCH_CHECK(reasons.empty(), "_conv_epilogue cannot compute this convolution on CUDA: ", reasons);
  const Sizes output{shape.n, shape.k, shape.p, shape.q};
  arguments.fit(output, strides_of(output, order), type);
  if (!shape.pixels()) return empty_tensor(input, output, order);

  const ZeroPadding zeros = zero_padding(type, input.size(1), padding, dilation);
  const ConvTensors tensors = prepare(input, weight, arguments.residual, zeros, output, device.stream());
  const ConvProblem problem = describe(shape, tensors, arguments, bias);
  const ConvPlan plan = choose_plan(problem, device, named_tile.load());
  OptionalTensor workspace;
  if (plan.workspace_bytes)
    workspace = torch::stable::new_empty(input, Sizes{int64_t(plan.workspace_bytes)}, ScalarType::Byte);
  void* const partial = workspace ? workspace->mutable_data_ptr() : nullptr;
  if (tensors.y.numel()) check(launch_conv(problem, plan, partial, device.stream()), "_conv_epilogue");
  return tensors.y;
}

STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, ATROUS_CUDA_KEY, m) {
  m.impl("_conv_epilogue", &OpAdapter<&conv_epilogue>::call);
}

// These take no tensor and so have no device. Only CUDA builds define them.
STABLE_TORCH_LIBRARY_FRAGMENT(ATROUS_LIBRARY, m) {
  m.def("_conv_tile(str name) -> ()");
  m.def(
      "_conv_reasons(ScalarType dtype, bool channels_last, int[4] input, int[4] weight, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups) -> str");
}
STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("_conv_tile", TORCH_BOX(&conv_tile));
  m.impl("_conv_reasons", TORCH_BOX(&geometry_reasons));
}

}  // namespace atrous::cuda
