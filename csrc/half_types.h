// Storage types of tensors and their conversions to and from the compute types.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "host_device.h"

namespace atrous {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The compute type of a storage type.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

ATROUS_HD float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
ATROUS_HD uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Branch-free conversions, so that loops over them vectorize; a GPU converts halves in hardware. narrow() rounds to
// nearest even.
ATROUS_HD float widen(float x) { return x; }
ATROUS_HD double widen(double x) { return x; }
ATROUS_HD float widen(BFloat16 x) { return as_float(uint32_t(x.bits) << 16); }
ATROUS_HD float widen(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__half(__half_raw{x.bits}));
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  const float subnormal = float(int32_t(magnitude)) * 0x1p-24f;
  const uint32_t rebias = magnitude >= 0x7C00 ? 0x70000000 : 0x38000000;  // infinity and NaN: to the top exponent
  const uint32_t normal = (magnitude << 13) + rebias;
  return as_float((magnitude < 0x0400 ? as_bits(subnormal) : normal) | sign);
#endif
}

template <class S>
ATROUS_HD S narrow(Wide<S> x) {
  return x;
}
template <>
ATROUS_HD BFloat16 narrow<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
  return {__nv_bfloat16_raw(__float2bfloat16_rn(x)).x};
#else
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return {uint16_t(x != x ? 0x7FC0 : rounded)};
#endif
}
template <>
ATROUS_HD Half narrow<Half>(float x) {
#ifdef __CUDA_ARCH__
  return {__half_raw(__float2half_rn(x)).x};
#else
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  const uint32_t normal = (magnitude - 0x38000000 + 0x0FFF + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);  // the addition rounds
  uint32_t result = magnitude < 0x38800000 ? subnormal : normal;                   // below 2**-14
  result = magnitude >= 0x477FF000 ? 0x7C00 : result;                              // 65520 and more: infinity
  result = magnitude > 0x7F800000 ? 0x7E00 : result;                               // NaN
  return {uint16_t(result | sign)};
#endif
}

}  // namespace atrous
