// _conv_epilogue.
#include "conv.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

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

// torch's own convolution in the layout that torch gives its result. The C function is torch's for compiled models: the
// dispatcher, called by name, would take the arguments in boxes and as long again as a small convolution.
Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const NoGrad guard;
  AtenTensorHandle b = bias ? bias->get() : nullptr, z = nullptr;
  const int64_t output_padding[2] = {0, 0};
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(input.get(), weight.get(), bias ? &b : nullptr, stride.data(), 2,
                                                    padding.data(), 2, dilation.data(), 2, /*transposed=*/0,
                                                    output_padding, 2, groups, &z));
  return Tensor(z);
}

}  // namespace

Tensor conv_epilogue(Epilogue& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  Tensor z = convolution(input, weight, bias, stride, padding, dilation, groups);
  const Order order = convolution_order(input, weight);
  if (!is_dense(z.sizes(), z.strides(), order)) z = torch::stable::contiguous(z, memory_format(order));
  epilogue_into(arguments, z, z);
  return z;
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_conv_epilogue", &OpAdapter<&conv_epilogue>::call); }

}  // namespace atrous::cpu
