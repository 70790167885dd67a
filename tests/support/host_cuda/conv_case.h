// A test convolution with its epilogue, by default slope(z * scale + shift + residual), and its expected result in
// fp64, for conv_emulation.cu and conv_sm90_emulation.cu.
#pragma once

#include <cmath>
#include <cstdint>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "conv/problem.h"

using namespace atrous;
using namespace atrous::cuda;

// Returns why conv_plan refuses the named tile; empty if it accepts it.
inline std::string refusal(const ConvProblem& problem, const Target& target) {
  try {
    conv_plan(problem, target);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

struct Case {
  int64_t n, h, w, c, k, r, s, stride[2], padding[2], dilation[2];
  double poison;  // if not 0, the value of the element in the middle of x

  // The columns of zeros on either side of x, and the width of x with them.
  int64_t margin() const { return c == STEM_CHANNELS ? padding[1] : 0; }
  int64_t width() const { return w + 2 * margin(); }
};

template <class T>
struct Buffer {
  std::vector<T> values;
  T* data;  // 16-byte aligned
  explicit Buffer(size_t size) : values(size + 16) {
    data = values.data() + (16 - reinterpret_cast<uintptr_t>(values.data()) % 16) % 16 / sizeof(T);
  }
  Buffer(size_t size, std::mt19937& random) : Buffer(size) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (size_t i = 0; i < size; ++i) data[i] = T(uniform(random));
  }
};

template <class Element>
struct TestConv {
  Case c;
  Slope kind;
  Residual place;
  std::mt19937 random{0};
  int64_t p, q;
  Buffer<Element> x, weight, residual, y;
  std::vector<float> mean, var;
  std::vector<double> slope;  // fp64 at stride 2: any dtype and stride must work

  static int64_t outputs(int64_t size, int64_t kernel, const Case& c, int i) {
    return (size + 2 * c.padding[i] - c.dilation[i] * (kernel - 1) - 1) / c.stride[i] + 1;
  }
  explicit TestConv(const Case& c, Slope kind = Slope::tensor, Residual place = Residual::before)
      : c(c),
        kind(kind),
        place(place),
        p(outputs(c.h, c.r, c, 0)),
        q(outputs(c.w, c.s, c, 1)),
        x(c.n * c.h * c.width() * c.c, random),
        weight(c.k * c.r * c.s * c.c, random),
        residual(c.n * p * q * c.k, random),
        y(c.n * p * q * c.k),
        mean(c.k),
        var(c.k),
        slope(2 * c.k) {
    for (int64_t at = 0; at < c.n * c.h * c.width() * c.c; ++at) {
      const int64_t column = at / c.c % c.width() - c.margin();
      if (column < 0 || column >= c.w) x.data[at] = Element(0);
    }
    if (c.poison != 0) x.data[((c.h / 2) * c.width() + c.width() / 2) * c.c] = Element(float(c.poison));
    for (int64_t k = 0; k < c.k; ++k) mean[k] = 0.01f * k, var[k] = 0.5f + k % 3, slope[2 * k] = 0.1 * (k % 5) - 0.2;
  }

  ConvProblem problem() const {
    ConvProblem all{};
    all.type = sizeof(Element) == 4 ? ScalarType::Float : ScalarType::Half;
    all.n = c.n, all.h = c.h, all.w = c.width(), all.c = c.c, all.k = c.k, all.r = c.r, all.s = c.s, all.p = p,
    all.q = q;
    for (int i = 0; i < 2; ++i)
      all.stride[i] = c.stride[i], all.padding[i] = c.padding[i], all.dilation[i] = c.dilation[i];
    all.padding[1] -= c.margin();
    all.x_strides[0] = c.c, all.x_strides[1] = all.w * c.c, all.x_strides[2] = c.h * all.w * c.c;
    all.groups = 1;
    all.x = x.data, all.weight = weight.data, all.residual = residual.data, all.y = y.data;
    all.vectors.mean = {mean.data(), 1, ScalarType::Float}, all.vectors.var = {var.data(), 1, ScalarType::Float};
    all.vectors.slope = {slope.data(), 2, ScalarType::Double};
    all.vectors.eps = 1e-5f;
    all.slope = kind, all.place = place;
    if (c.c == STEM_CHANNELS) merge_kernel_rows(all);
    return all;
  }

  double expected(int64_t pixel, int64_t k) const {
    const int64_t image = pixel / (p * q), row = pixel / q % p, column = pixel % q;
    double z = 0;
    for (int64_t r = 0; r < c.r; ++r)
      for (int64_t s = 0; s < c.s; ++s) {
        const int64_t h = row * c.stride[0] - c.padding[0] + r * c.dilation[0],
                      w = column * c.stride[1] - c.padding[1] + s * c.dilation[1];
        if (h < 0 || h >= c.h || w < 0 || w >= c.w) continue;
        for (int64_t i = 0; i < c.c; ++i)
          z += double(float(x.data[((image * c.h + h) * c.width() + w + c.margin()) * c.c + i])) *
               double(float(weight.data[((k * c.r + r) * c.s + s) * c.c + i]));
      }
    const double residual_value = place == Residual::none ? 0 : double(float(residual.data[pixel * c.k + k]));
    const double u =
        (z - mean[k]) / std::sqrt(double(var[k]) + 1e-5f) + (place == Residual::before ? residual_value : 0);
    const double y = kind == Slope::relu ? (u < 0 ? 0 : u) : u > 0 ? u : u * slope[2 * k];
    return place == Residual::after ? y + residual_value : y;
  }

  // The error of a result in units of the element type's tolerance; NaN and infinities must match exactly.
  double error(double result, int64_t pixel, int64_t k) const {
    const double truth = expected(pixel, k);
    if (std::isnan(truth) && std::isnan(result)) return 0;
    if (std::isinf(truth) && result == truth) return 0;
    return std::abs(result - truth) / ((sizeof(Element) == 4 ? 1e-5 : 1e-3) * (1 + std::abs(truth)));
  }
};
