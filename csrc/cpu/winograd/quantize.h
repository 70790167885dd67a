// 16-bit fixed point: CHUNK values and a scale. Products of two such chunks are summed in 32 bits without overflow, as
// fast as products of bfloat16, and their rounding errors are a tenth of bfloat16's.
#pragma once

#include <algorithm>
#include <cmath>

#include "../vector.h"

namespace atrous::winograd {

constexpr int64_t CHUNK = 32;
constexpr int32_t LARGEST = 8191;  // CHUNK * LARGEST^2 < 2^31

// The factor that turns values of absolute value `largest` at most (its bits) into integers up to LARGEST, and back.
struct Scale {
  float to_integer, to_float;

  // From infinity and NaN on, the results shall be NaN. Values too small for a factor become zero.
  explicit Scale(int32_t largest_bits) {
    const float largest = as_float(largest_bits);
    const bool usable = largest > 1e-30f && largest < INFINITY;
    to_integer = usable ? float(LARGEST) / largest : 0;
    to_float = usable ? largest / float(LARGEST) : largest - largest;
  }
};

// The order of absolute values is that of their bits as integers; NaN comes last.
inline int32_t magnitude(float value) { return int32_t(as_bits(value) & 0x7FFFFFFF); }

// The nearest integer. NaN becomes zero: its conversion is undefined, and the scale of its chunk is NaN already.
inline int32_t nearest(float value) { return int32_t(value == value ? std::rint(value) : 0); }

// Writes the CHUNK values as integers; returns the factor that turns them back.
inline float quantize(const float* values, int16_t* integers) {
  int32_t largest = 0;
  for (int i = 0; i < CHUNK; ++i) largest = std::max(largest, magnitude(values[i]));
  const Scale scale(largest);
  for (int i = 0; i < CHUNK; ++i) integers[i] = int16_t(nearest(values[i] * scale.to_integer));
  return scale.to_float;
}

}  // namespace atrous::winograd
