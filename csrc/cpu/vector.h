// What the CPU kernels share: storage types, and functions compiled once for each instruction set.
#pragma once

#include <torch/headeronly/util/bit_cast.h>

#include <cstdint>
#include <type_traits>

// Compiles a function, with all that it calls, for three instruction sets and picks one when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ATROUS_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATROUS_CLONES
#endif

// The iterations of the next loop are independent, whatever its pointers look like: y may be z.
#if defined(__clang__)
#define ATROUS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ATROUS_INDEPENDENT _Pragma("GCC ivdep")
#else
#define ATROUS_INDEPENDENT
#endif

// The next loop becomes vector code before it is unrolled, also where its length is a small constant.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_ROLLED _Pragma("GCC unroll 1")
#else
#define ATROUS_ROLLED
#endif

namespace atrous {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that a storage type is computed in.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

inline float as_float(uint32_t bits) { return c10::bit_cast<float>(bits); }
inline uint32_t as_bits(float value) { return c10::bit_cast<uint32_t>(value); }

// Conversions without branches, so that loops over them become vector code. To storage they round to nearest even.
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return as_float(uint32_t(x.bits) << 16); }
inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  const float subnormal = float(int32_t(magnitude)) * 0x1p-24f;
  const uint32_t rebias = magnitude >= 0x7C00 ? 0x70000000 : 0x38000000;  // infinity and NaN: to the top exponent
  const uint32_t normal = (magnitude << 13) + rebias;
  return as_float((magnitude < 0x0400 ? as_bits(subnormal) : normal) | sign);
}

template <class S>
S narrow(Wide<S> x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return {uint16_t(x != x ? 0x7FC0 : rounded)};
}
template <>
inline Half narrow<Half>(float x) {
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  const uint32_t normal = (magnitude - 0x38000000 + 0x0FFF + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);  // the sum does the rounding
  uint32_t result = magnitude < 0x38800000 ? subnormal : normal;                   // below 2**-14
  result = magnitude >= 0x477FF000 ? 0x7C00 : result;                              // 65520 and more: infinity
  result = magnitude > 0x7F800000 ? 0x7E00 : result;                               // NaN
  return {uint16_t(result | sign)};
}

}  // namespace atrous
