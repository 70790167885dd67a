// _conv_epilogue: tensors -> ConvProblem -> plan -> launch; what our kernels do not take is torch's own convolution and
// then the epilogue.
#include <torch/csrc/stable/ops.h>

#include "../convolution.h"
#include "conv_problem.h"
#include "describe.h"
#include "device.h"
#include "primitives.h"

namespace atrous::cuda {

namespace {

ConvProblem describe(const Arguments& arguments, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     const Tensor& y, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     int64_t groups) {
  ConvProblem problem{};
  problem.x = x.const_data_ptr();
  problem.weight = weight.const_data_ptr();
  problem.residual = arguments.residual ? arguments.residual->const_data_ptr() : nullptr;
  problem.y = y.mutable_data_ptr();
  problem.type = x.scalar_type();
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

Tensor empty_channels_last(const Tensor& like, const Sizes& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
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
  const Device device("input", input);
  device.check("weight", weight);
  device.check("bias", bias);
  device.check(arguments);
  const auto unfused = [&] {
    return epilogue(arguments, convolution(input, weight, bias, stride, padding, dilation, groups));
  };
  if (groups != 1 || order_of(to_vector(input.sizes()), to_vector(input.strides())) != Order::channels_last)
    return unfused();
  const Sizes sizes = convolution_sizes(input, weight, stride, padding, dilation);
  arguments.check(sizes, strides_of(sizes, Order::channels_last), input.scalar_type());
  const int64_t channels = conv_channels(input.size(1), input.scalar_type());
  const Tensor x = prepare(input, channels), krsc = prepare(weight, channels), y = empty_channels_last(input, sizes);
  const ConvProblem problem = describe(arguments, x, krsc, bias, y, stride, padding, dilation, groups);
  if (!conv_reasons(problem).empty()) return unfused();
  const bool sm90 = device.capability() == 90 && conv_sm90_built();
  const ConvPlan plan = conv_plan(problem, device.multiprocessors(), sm90);
  const Tensor shares = torch::stable::new_empty(input, Sizes{int64_t(plan.workspace_bytes)}, ScalarType::Byte);
  if (y.numel()) check(conv_run(problem, plan, shares.mutable_data_ptr(), device.stream()), "_conv_epilogue");
  return y;
}

}  // namespace atrous::cuda
