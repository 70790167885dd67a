// The epilogue of every kernel and its gradient, as functions of values. triton_kernels/epilogue.py is the Triton
// counterpart; pyops/reference.py is the oracle of both. A multiply and an add are fused exactly where `fma` is written
// (-ffp-contract=off; in CUDA `multiply` prevents fusion), so the same inputs give the same bits everywhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace atrous {

// number and tensor differ only in where the slope comes from.
enum class Slope { relu, number, tensor, random };
constexpr const char* SLOPE_KINDS[] = {"relu", "number", "tensor", "random"};  // the slope_kind of each
enum class Residual { none, before, after };

template <class T>
struct Affine {
  T scale, shift;
};

// z * 1 + -0.0 is z, for -0.0 too.
template <class T>
ATROUS_HD Affine<T> identity() {
  return {T(1), T(-0.0)};
}

// BatchNorm as one multiply-add: scale = gamma / sqrt(var + eps), shift = beta - mean * scale.
template <class T>
ATROUS_HD Affine<T> affine(T mean, T var, T gamma, T beta, T eps) {
  const T scale = gamma / std::sqrt(var + eps);
  return {scale, std::fma(-mean, scale, beta)};
}

// An element's two random numbers, uniform in [0, 1).
struct Uniforms {
  float slope, dropout;
};

// Each has 24 bits: the first two words of Philox-4x32-10 of counter (index, offset) and key seed.
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
ATROUS_HD Uniforms uniforms(uint64_t seed, uint64_t offset, uint64_t index) {
  uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = uint32_t(offset), c3 = uint32_t(offset >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  // via int32, a conversion that every vector unit has
  return {float(int32_t(c0 >> 8)) * 0x1p-24f, float(int32_t(c1 >> 8)) * 0x1p-24f};
}

// Parameters of a kernel that draws: random slopes, lower + (upper - lower) * uniform, and dropout's mask.
template <class T>
struct Draw {
  uint64_t seed, offset;
  T lower, upper;
  float dropout;  // fp32, like the uniform that it is compared with
  T keep_scale;   // 1 / (1 - dropout)

  ATROUS_HD Uniforms at(uint64_t index) const { return uniforms(seed, offset, index); }
  ATROUS_HD T slope(Uniforms drawn) const { return std::fma(upper - lower, T(drawn.slope), lower); }
  ATROUS_HD T keep(Uniforms drawn) const { return drawn.dropout >= dropout ? keep_scale : T(0); }
};

template <class T>
ATROUS_HD T multiply(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4)
    return __fmul_rn(a, b);
  else
    return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// u = z * scale + shift (+ residual), the activation's input. The backward pass must see the same u as the forward.
template <class T, Residual RESIDUAL>
ATROUS_HD T before_activation(T z, Affine<T> channel, T residual) {
  const T u = std::fma(z, channel.scale, channel.shift);
  return RESIDUAL == Residual::before ? u + residual : u;
}

// y = (act(u) (+ residual)) (* keep). NaN and -0.0 are preserved; ReLU is a select, not slope 0.
template <class T, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
ATROUS_HD T epilogue(T z, Affine<T> channel, T slope, T residual, T keep) {
  const T u = before_activation<T, RESIDUAL>(z, channel, residual);
  T y;
  if (SLOPE == Slope::relu)
    y = u < T(0) ? T(0) : u;
  else
    y = u > T(0) ? u : multiply(slope, u);
  if (RESIDUAL == Residual::after) y += residual;
  return DROPOUT ? multiply(y, keep) : y;
}

// dact(u)/du. At 0 it is the slope; for NaN it is 1 with ReLU and RReLU, and else the slope, as in torch.
template <class T, Slope SLOPE>
ATROUS_HD T derivative(T u, T slope) {
  if (SLOPE == Slope::relu) return u <= T(0) ? T(0) : T(1);
  if (SLOPE == Slope::random) return u <= T(0) ? slope : T(1);
  return u > T(0) ? T(1) : slope;
}

// An element's contribution to the gradient of its slope.
template <class T>
ATROUS_HD T slope_gradient(T dy, T u) {
  return u > T(0) ? T(0) : multiply(dy, u);
}

}  // namespace atrous
