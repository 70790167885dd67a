// _conv_epilogue on a card: tensors -> ConvProblem -> plan -> launch.
#include "conv.h"

#include <torch/csrc/stable/accelerator.h>

#include "../convolution.h"
#include "conv_device.h"
#include "conv_problem.h"

namespace atrous::cuda {

namespace {

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Type::fp16;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Float:
      return Type::fp32;
    default:
      return Type::fp64;
  }
}

Vector vector_of(const OptionalTensor& vector) {
  if (!vector) return {};
  return {vector->const_data_ptr(), vector->size(0) == 1 ? 0 : vector->stride(0), type_of(*vector)};
}

ChannelVectors vectors_of(const Arguments& arguments, const OptionalTensor& bias) {
  const bool slopes = arguments.kind() == Slope::tensor;
  return {vector_of(arguments.mean),
          vector_of(arguments.var),
          vector_of(arguments.gamma),
          vector_of(arguments.beta),
          vector_of(bias),
          slopes ? vector_of(arguments.slope) : Vector{},
          float(arguments.eps),
          float(arguments.slope_value)};
}

ConvProblem describe(const Arguments& arguments, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     const Tensor& y, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     int64_t groups) {
  ConvProblem problem{};
  problem.x = x.const_data_ptr();
  problem.weight = weight.const_data_ptr();
  problem.residual = arguments.residual ? arguments.residual->const_data_ptr() : nullptr;
  problem.y = y.mutable_data_ptr();
  problem.type = type_of(x);
  problem.n = x.size(0), problem.c = x.size(1), problem.h = x.size(2), problem.w = x.size(3);
  problem.k = weight.size(0), problem.r = weight.size(2), problem.s = weight.size(3);
  problem.p = y.size(2), problem.q = y.size(3);
  for (int i = 0; i < 2; ++i) {
    problem.stride[i] = stride[i];
    problem.padding[i] = padding[i];
    problem.dilation[i] = dilation[i];
  }
  problem.groups = groups;
  problem.vectors = vectors_of(arguments, bias);
  problem.slope = arguments.kind();
  problem.place = arguments.place();
  problem.dropout = arguments.dropout > 0;
  return problem;
}

void check_channels_last(const Tensor& input) {
  const Sizes sizes = to_vector(input.sizes()), strides = to_vector(input.strides());
  STD_TORCH_CHECK(same_strides(sizes, strides, strides_of(sizes, Order::channels_last)),
                  "input: expected channels_last strides, got shape ", to_string(sizes), ", strides ",
                  to_string(strides));
}

// Channels last, with zeros up to as many channels as the kernels read: a copy where there are fewer.
Tensor prepare(const Tensor& tensor, int64_t channels) {
  const int64_t more = channels - tensor.size(1);
  const Tensor whole = more ? torch::stable::pad(tensor, Sizes{0, 0, 0, 0, 0, more}) : tensor;
  return torch::stable::contiguous(whole, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace

Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  check_channels_last(input);
  const Sizes sizes = convolution_sizes(input, weight, stride, padding, dilation);
  arguments.check(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(input.get_device());
  const int64_t channels = groups == 1 ? conv_channels(input.size(1), type_of(input)) : input.size(1);
  const Tensor x = prepare(input, channels), krsc = groups == 1 ? prepare(weight, channels) : weight;
  const Tensor y = empty_channels_last(input, sizes);
  const ConvProblem problem = describe(arguments, x, krsc, bias, y, stride, padding, dilation, groups);
  const std::string reasons = conv_reasons(problem);
  STD_TORCH_CHECK(reasons.empty(), "no CUDA kernel for this convolution: ", reasons);
  if (y.numel() == 0) return y;
  const ConvPlan plan = conv_plan(problem, multiprocessors(input.get_device()));
  const Tensor shares = workspace(input, plan.workspace_bytes);
  STD_CUDA_CHECK(conv_run(problem, plan, shares.mutable_data_ptr(), current_stream(input.get_device())));
  return y;
}

}  // namespace atrous::cuda
