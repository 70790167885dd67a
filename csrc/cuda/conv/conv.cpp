// _conv_epilogue: tensors -> ConvProblem -> plan -> launch; what our kernels do not take is torch's own convolution and
// then the epilogue.
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

// The zeros that the input needs before a kernel reads it.
struct Padded {
  int64_t channels;  // in all
  int64_t around;    // columns on either side
};

// x is as it will be once it is padded.
ConvProblem describe(const Arguments& arguments, const Tensor& input, const Padded& padded, const Tensor& weight,
                     const OptionalTensor& bias, const Sizes& sizes, const Sizes& stride, const Sizes& padding,
                     const Sizes& dilation, int64_t groups) {
  ConvProblem problem{};
  problem.x = input.const_data_ptr();
  problem.weight = weight.const_data_ptr();
  problem.residual = arguments.residual ? arguments.residual->const_data_ptr() : nullptr;
  problem.type = input.scalar_type();
  problem.n = input.size(0), problem.h = input.size(2), problem.w = input.size(3) + 2 * padded.around;
  problem.c = padded.channels, problem.k = sizes[1], problem.p = sizes[2], problem.q = sizes[3];
  problem.r = weight.size(2), problem.s = weight.size(3);
  problem.x_strides[0] = problem.c;
  problem.x_strides[1] = problem.w * problem.c;
  problem.x_strides[2] = problem.h * problem.w * problem.c;
  for (int i = 0; i < 2; ++i) {
    problem.stride[i] = stride[i];
    problem.padding[i] = padding[i];
    problem.dilation[i] = dilation[i];
  }
  problem.padding[1] -= padded.around;
  problem.groups = groups;
  problem.vectors = vectors_of(arguments, bias);
  problem.slope = arguments.kind();
  problem.place = arguments.place();
  problem.dropout = arguments.dropout > 0;
  return problem;
}

Tensor empty_channels_last(const Tensor& like, const Sizes& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// Channels last, with its zeros: a copy where it is not so already.
Tensor prepare(const Tensor& tensor, const Padded& padded, cudaStream_t stream) {
  const int64_t n = tensor.size(0), c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  if (padded.channels == c && !padded.around)
    return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
  const Tensor whole = empty_channels_last(tensor, Sizes{n, padded.channels, h, w + 2 * padded.around});
  const ConvPad pad{tensor.const_data_ptr(),
                    whole.mutable_data_ptr(),
                    tensor.scalar_type(),
                    n,
                    c,
                    h,
                    w,
                    {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)},
                    padded.channels,
                    padded.around};
  if (whole.numel()) check(conv_pad(pad, stream), "_conv_epilogue");
  return whole;
}

// The tile of every convolution, as conv_tile names it; empty for the predicted one.
std::atomic<const char*> named_tile{""};

// Why this library's kernels do not compute it; empty where they do.
std::string reasons(const Tensor& input, const ConvProblem& problem) {
  return suggests_channels_last(input) ? conv_reasons(problem) : "input: expected channels_last";
}

cudaError_t run(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream) {
  const auto product = problem.type == ScalarType::Half       ? plan.tma ? conv_sm90_fp16 : conv_fp16
                       : problem.type == ScalarType::BFloat16 ? plan.tma ? conv_sm90_bf16 : conv_bf16
                                                              : conv_fp32;
  const cudaError_t result = product(problem, plan, workspace, stream);
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
  const int64_t channels = conv_channels(input.size(1), input.scalar_type(), dilation[1]);
  const bool rows = reads_rows(input.size(1), dilation[1]);
  const Padded padded{channels, rows ? padding[1] : 0};
  ConvProblem problem = describe(arguments, input, padded, weight, bias, sizes, stride, padding, dilation, groups);
  if (rows) merge_rows(problem);
  const std::string_view tile = named_tile.load();
  if (const std::string no_kernel = reasons(input, problem); !no_kernel.empty()) {
    STD_TORCH_CHECK(tile.empty(), tile, " cannot compute this convolution: ", no_kernel);
    return epilogue(arguments, convolution(input, weight, bias, stride, padding, dilation, groups));
  }
  arguments.check(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  const int chip = device.capability();
  const ConvPlan plan = conv_plan(problem, {chip, device.multiprocessors(), chip == 90 && conv_sm90_built(), tile});
  const Tensor x = prepare(input, padded, device.stream()), krsc = prepare(weight, {channels, 0}, device.stream()),
               y = empty_channels_last(input, sizes);
  problem.x = x.const_data_ptr(), problem.weight = krsc.const_data_ptr(), problem.y = y.mutable_data_ptr();
  std::optional<Tensor> partial;
  if (plan.workspace_bytes)
    partial = torch::stable::new_empty(input, Sizes{int64_t(plan.workspace_bytes)}, ScalarType::Byte);
  void* const workspace = partial ? partial->mutable_data_ptr() : nullptr;
  if (y.numel()) check(run(problem, plan, workspace, device.stream()), "_conv_epilogue");
  return y;
}

}  // namespace atrous::cuda
