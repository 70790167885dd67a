// _conv_epilogue: torch's own convolution, followed by the epilogue in place.
#include "../convolution.h"

#include "primitives.h"

namespace atrous::cpu {

Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_convolution(input, weight, bias, stride, padding, dilation, groups);
  const Tensor z = convolution(input, weight, bias, stride, padding, dilation, groups);
  epilogue_into(arguments, z, z);
  return z;
}

}  // namespace atrous::cpu
