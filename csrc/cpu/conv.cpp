// _conv_epilogue.
#include "conv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "../convolution.h"
#include "../op_adapter.h"
#include "epilogue_into.h"

namespace atrous::cpu {

namespace {

// Turns autograd recording off: a primitive has no gradient of its own, and its z is overwritten.
struct NoGrad {
  const bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before); }
};

}  // namespace

Tensor conv_epilogue(const Epilogue& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  const NoGrad guard;
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{from(input),    from(weight), from(bias),        from(stride), from(padding),
                                    from(dilation), from(false),  from(Sizes{0, 0}), from(groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor z = torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]),
                                             memory_format(convolution_order(input, weight)));
  epilogue_into(arguments, z, z);
  return z;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_conv_epilogue", TORCH_BOX(&OpAdapter<&conv_epilogue>::call)); }

}  // namespace atrous::cpu
