// The CUDA primitives, with the arguments, results and errors of ../cpu/primitives.h.
#pragma once

#include "../arguments.h"

namespace atrous::cuda {

Tensor epilogue(const Epilogue& arguments, const Tensor& z);
Tensor epilogue_reduce(const Epilogue& arguments, const Tensor& grad, const Tensor& z);
std::tuple<Tensor, Tensor> epilogue_backward(const Epilogue& arguments, const Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual);
std::tuple<Tensor, Tensor> statistics(const Tensor& z);

// One launch, or two with split-K or an epilogue that draws. fp32 is multiplied in tf32. Throws conv_reasons unless
// they are empty. A weight with other strides is copied, and so are an input and a weight whose channels do not fill
// whole vectors, as in a stem, and tensors that are not aligned to 16 bytes.
Tensor conv_epilogue(const Epilogue& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);
// Returns why no kernel computes a convolution of these sizes, "; " between reasons; empty if one does: a kernel takes
// a channels_last output in fp16, bf16 or fp32, groups of 1 and output channels that fill whole vectors of 16 bytes.
std::string conv_reasons(ScalarType type, bool channels_last, Sizes input, Sizes weight, Sizes stride, Sizes padding,
                         Sizes dilation, int64_t groups);
// Fixes the tile of every later conv_epilogue, for measurements and tests; an empty name returns to the predicted tile.
// A convolution that the tile cannot compute is an error.
void conv_tile(std::string name);

}  // namespace atrous::cuda
