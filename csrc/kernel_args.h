// Converts tensor arguments to the structs that kernels read.
#pragma once

#include "arguments.h"
#include "channel_vectors.h"

namespace atrous {

inline ChannelVector vector_of(const OptionalTensor& tensor) {
  if (!tensor) return {};
  return {tensor->const_data_ptr(), tensor->size(0) == 1 ? 0 : tensor->stride(0), tensor->scalar_type()};
}

inline ChannelVectors vectors_of(const Epilogue& arguments, const OptionalTensor& bias = {}) {
  const Slope kind = arguments.slope_kind;
  ChannelVectors vectors{vector_of(arguments.mean),
                         vector_of(arguments.var),
                         vector_of(arguments.gamma),
                         vector_of(arguments.beta),
                         vector_of(bias),
                         kind == Slope::tensor ? vector_of(arguments.slope) : ChannelVector{},
                         arguments.eps,
                         arguments.slope_value,
                         arguments.slope_upper,
                         arguments.dropout,
                         nullptr,
                         0,
                         kind == Slope::random};
  if (arguments.draws()) {
    vectors.seed = static_cast<const int64_t*>(arguments.seed->const_data_ptr());
    vectors.seed_stride = arguments.seed->stride(0);
  }
  return vectors;
}

}  // namespace atrous
