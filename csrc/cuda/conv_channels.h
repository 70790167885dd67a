// The three values a channel that the epilogue needs, read from the vectors as they come: any float dtype, any stride.
// Host code too: no CUTLASS, no torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../epilogue.h"

namespace atrous::cuda {

enum class Type { fp16, bf16, fp32, fp64 };

// One value a channel; a stride of 0 repeats one for all. data is null where there is none.
struct Vector {
  const void* data;
  int64_t stride;
  Type type;
};

struct ChannelVectors {
  Vector mean, var, gamma, beta, bias, slope;
  float eps, slope_value;
};

struct Channel {
  float scale, shift, slope;
};

ATROUS_HD float read(const Vector& vector, int64_t channel, float absent) {
  if (!vector.data) return absent;
  const int64_t at = channel * vector.stride;
  switch (vector.type) {
    case Type::fp16:
      return __half2float(static_cast<const __half*>(vector.data)[at]);
    case Type::bf16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(vector.data)[at]);
    case Type::fp32:
      return static_cast<const float*>(vector.data)[at];
    default:
      return float(static_cast<const double*>(vector.data)[at]);
  }
}

// The bias of the convolution goes into the shift: (z + bias) * scale + shift, of which z * scale is left for later.
ATROUS_HD Channel channel_at(const ChannelVectors& vectors, int64_t channel) {
  Affine<float> values = identity<float>();
  if (vectors.mean.data)
    values = affine(read(vectors.mean, channel, 0), read(vectors.var, channel, 0), read(vectors.gamma, channel, 1),
                    read(vectors.beta, channel, 0), vectors.eps);
  else
    values.shift = read(vectors.beta, channel, values.shift);
  if (vectors.bias.data) values.shift = std::fma(read(vectors.bias, channel, 0), values.scale, values.shift);
  return {values.scale, values.shift, read(vectors.slope, channel, vectors.slope_value)};
}

}  // namespace atrous::cuda
