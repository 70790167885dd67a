#include "convolution.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <array>

namespace atrous {

namespace {

// Turns autograd recording off: a primitive has no gradient of its own, and its z is overwritten.
struct NoGrad {
  const bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before); }
};

}  // namespace

bool suggests_channels_last(const Tensor& tensor) {
  int64_t least = 0;
  for (int axis : {1, 3, 2, 0}) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis);
    if (size == 0 || stride < least || tensor.stride(1) == 0 || (axis == 0 && least == tensor.stride(1))) return false;
    least = size * stride;
  }
  return true;
}

void check_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                       const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_floating("input", input);
  check_floating("weight", weight);
  const auto same_dtype = [&](const char* name, const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, ": expected dtype ",
                    torch::headeronly::toString(input.scalar_type()), " like the input, got ",
                    torch::headeronly::toString(tensor.scalar_type()));
  };
  same_dtype("weight", weight);
  const Sizes x = to_vector(input.sizes()), w = to_vector(weight.sizes());
  STD_TORCH_CHECK(x.size() == 4, "input: expected 4-D (N, C, H, W), got shape ", to_string(x));
  STD_TORCH_CHECK(groups > 0, "groups: expected at least 1, got ", groups);
  STD_TORCH_CHECK(w.size() == 4 && x[1] > 0 && x[1] == w[1] * groups && w[0] % groups == 0,
                  "weight: expected shape [K, C / groups, kH, kW] with C = ", x[1], ", not 0, and groups = ", groups,
                  ", got ", to_string(w));
  check_vector("bias", bias, w[0]);
  if (bias) same_dtype("bias", *bias);
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  for (int i = 0; i < 2; ++i) {
    const int64_t kernel = dilation[i] * (w[i + 2] - 1) + 1, padded = x[i + 2] + 2 * padding[i];
    STD_TORCH_CHECK(w[i + 2] > 0 && padded >= kernel,
                    "input: expected a padded size of at least the dilated kernel's, ", kernel, ", got ", padded);
  }
}

Sizes convolution_sizes(const Tensor& input, const Tensor& weight, const Sizes& stride, const Sizes& padding,
                        const Sizes& dilation) {
  Sizes sizes{input.size(0), weight.size(0), 0, 0};
  for (int i = 0; i < 2; ++i) {
    const int64_t kernel = dilation[i] * (weight.size(i + 2) - 1) + 1;
    sizes[i + 2] = (input.size(i + 2) + 2 * padding[i] - kernel) / stride[i] + 1;
  }
  return sizes;
}

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const NoGrad guard;
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{from(input),    from(weight), from(bias),        from(stride), from(padding),
                                    from(dilation), from(false),  from(Sizes{0, 0}), from(groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  using torch::headeronly::MemoryFormat;
  const bool channels_last = suggests_channels_last(input) || suggests_channels_last(weight);
  return torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]),
                                   channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace atrous
