// _conv_epilogue: torch's own convolution, then the epilogue in place on its result.
#include <torch/csrc/stable/library.h>

#include <array>

#include "../convolution.h"
#include "primitives.h"

namespace atrous::cpu {

namespace {

// Nothing in here is recorded for autograd: a primitive has no gradient, and its z is overwritten.
struct NoGrad {
  const bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before); }
};

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, int64_t groups) {
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{from(input),    from(weight), from(bias),        from(stride), from(padding),
                                    from(dilation), from(false),  from(Sizes{0, 0}), from(groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  // An error inside aten::convolution reaches us without its message: what it would refuse is named here.
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  const NoGrad guard;
  const Tensor z = convolution(input, weight, bias, stride, padding, dilation, groups);
  epilogue_into(arguments, z, z);
  return z;
}

}  // namespace atrous::cpu
