// _conv_epilogue: tensors -> ConvProblem -> ConvPlan -> launch. A convolution that our kernels do not support runs as
// torch's own convolution and then the epilogue.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>

#include "../../convolution.h"
#include "../device.h"
#include "../kernel_args.h"
#include "../primitives.h"
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

// The tensors of a call. y is absent before its memory is allocated.
struct ConvTensors {
  Tensor x, weight;
  OptionalTensor y;
};

ZeroPadding zero_padding(const Tensor& input, const Sizes& padding, const Sizes& dilation) {
  return {conv_channels(input.size(1), input.scalar_type(), dilation[1]),
          merges_kernel_rows(input.size(1), dilation[1]) ? padding[1] : 0};
}

// The problem's sizes, with x as it is once it is padded.
ConvProblem geometry(const Tensor& input, const Tensor& weight, const ZeroPadding& zeros, const Sizes& sizes,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  ConvProblem problem{};
  problem.type = input.scalar_type();
  problem.n = input.size(0), problem.h = input.size(2), problem.w = input.size(3) + 2 * zeros.margin;
  problem.c = zeros.channels, problem.k = sizes[1], problem.p = sizes[2], problem.q = sizes[3];
  problem.r = weight.size(2), problem.s = weight.size(3);
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
  if (merges_kernel_rows(input.size(1), dilation[1])) merge_kernel_rows(problem);
  return problem;
}

Tensor empty_channels_last(const Tensor& like, const Sizes& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// Returns the tensor in channels_last with its zeros: a copy, unless it already is.
Tensor pad_channels_last(const Tensor& tensor, const ZeroPadding& zeros, cudaStream_t stream) {
  const int64_t n = tensor.size(0), c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  if (zeros.channels == c && !zeros.margin)
    return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
  const Tensor padded = empty_channels_last(tensor, Sizes{n, zeros.channels, h, w + 2 * zeros.margin});
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

ConvTensors prepare(const Tensor& input, const Tensor& weight, const ZeroPadding& zeros, const Sizes& sizes,
                    cudaStream_t stream) {
  return {pad_channels_last(input, zeros, stream), pad_channels_last(weight, {zeros.channels, 0}, stream),
          empty_channels_last(input, sizes)};
}

// Completes a geometry with the memory of its tensors and the epilogue.
ConvProblem describe(ConvProblem problem, const ConvTensors& tensors, const Arguments& arguments,
                     const OptionalTensor& bias) {
  problem.x = tensors.x.const_data_ptr();
  problem.weight = tensors.weight.const_data_ptr();
  problem.residual = arguments.residual ? arguments.residual->const_data_ptr() : nullptr;
  problem.y = tensors.y ? tensors.y->mutable_data_ptr() : nullptr;
  problem.vectors = vectors_of(arguments, bias);
  problem.slope = arguments.kind();
  problem.place = arguments.place();
  problem.dropout = arguments.dropout > 0;
  return problem;
}

// Returns why our kernels do not support the call; empty if they do.
std::string reasons(const Tensor& input, const ConvProblem& call) {
  return suggests_channels_last(input) ? conv_reasons(call) : "input: expected channels_last";
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

void conv_tile(std::string name) {
  const char* const known = conv_tile_name(name);
  STD_TORCH_CHECK(known, "_conv_tile: expected one of ", conv_tiles(), ", or nothing, got ", name);
  named_tile = known;
}

Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  const Device device("input", input);
  device.check("weight", weight);
  device.check("bias", bias);
  device.check(arguments);
  const Sizes sizes = convolution_sizes(input, weight, stride, padding, dilation);
  const ZeroPadding zeros = zero_padding(input, padding, dilation);
  const ConvProblem shape = geometry(input, weight, zeros, sizes, stride, padding, dilation, groups);
  const std::string_view tile = named_tile.load();
  // Support is decided on the caller's own tensors, before any is copied.
  const ConvProblem call = describe(shape, {input, weight, {}}, arguments, bias);
  if (const std::string no_kernel = reasons(input, call); !no_kernel.empty()) {
    STD_TORCH_CHECK(tile.empty(), tile, " cannot compute this convolution: ", no_kernel);
    return epilogue(arguments, convolution(input, weight, bias, stride, padding, dilation, groups));
  }
  arguments.check(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());

  const ConvTensors tensors = prepare(input, weight, zeros, sizes, device.stream());
  const ConvProblem problem = describe(shape, tensors, arguments, bias);
  const ConvPlan plan = choose_plan(problem, device, tile);
  OptionalTensor workspace;
  if (plan.workspace_bytes)
    workspace = torch::stable::new_empty(input, Sizes{int64_t(plan.workspace_bytes)}, ScalarType::Byte);
  void* const partial = workspace ? workspace->mutable_data_ptr() : nullptr;
  if (tensors.y->numel()) check(launch_conv(problem, plan, partial, device.stream()), "_conv_epilogue");
  return *tensors.y;
}

}  // namespace atrous::cuda
