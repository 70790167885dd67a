#include "convolution.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

namespace atrous {

namespace {

bool suggests_channels_last(const Tensor& tensor) {
  int64_t least = 0;
  for (int axis : {1, 3, 2, 0}) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis);
    if (size == 0 || stride < least || tensor.stride(1) == 0 || (axis == 0 && least == tensor.stride(1))) return false;
    least = size * stride;
  }
  return true;
}

}  // namespace

Sizes convolution_sizes(SizesRef input, SizesRef weight, SizesRef stride, SizesRef padding, SizesRef dilation) {
  Sizes sizes{input[0], weight[0], 0, 0};
  for (int i = 0; i < 2; ++i) {
    const int64_t kernel = dilation[i] * (weight[i + 2] - 1) + 1, padded = input[i + 2] + 2 * padding[i];
    STD_TORCH_CHECK(weight[i + 2] > 0 && padded >= kernel,
                    "input: expected a padded size of at least the dilated kernel's, ", kernel, ", got ", padded);
    sizes[i + 2] = (padded - kernel) / stride[i] + 1;
  }
  return sizes;
}

void check_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SizesRef stride,
                       SizesRef padding, SizesRef dilation, int64_t groups) {
  check_floating("input", input);
  check_floating("weight", weight);
  const auto same_dtype = [&](const char* name, const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, ": expected dtype ",
                    torch::headeronly::toString(input.scalar_type()), " like the input, got ",
                    torch::headeronly::toString(tensor.scalar_type()));
  };
  same_dtype("weight", weight);
  const SizesRef x = input.sizes(), w = weight.sizes();
  STD_TORCH_CHECK(x.size() == 4, "input: expected 4-D (N, C, H, W), got shape ", to_string(x));
  STD_TORCH_CHECK(groups > 0, "groups: expected at least 1, got ", groups);
  STD_TORCH_CHECK(w.size() == 4 && x[1] > 0 && x[1] == w[1] * groups && w[0] % groups == 0,
                  "weight: expected shape [K, C / groups, kH, kW] with C = ", x[1], ", not 0, and groups = ", groups,
                  ", got ", to_string(w));
  if (bias) same_dtype("bias", *bias);
  check_vector("bias", bias, w[0]);
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  convolution_sizes(x, w, stride, padding, dilation);  // throws unless the kernel fits
}

Order convolution_order(const Tensor& input, const Tensor& weight) {
  return suggests_channels_last(input) || suggests_channels_last(weight) ? Order::channels_last : Order::channels_first;
}

Tensor empty_tensor(const Tensor& like, const Sizes& sizes, Order order) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              memory_format(order));
}

}  // namespace atrous
