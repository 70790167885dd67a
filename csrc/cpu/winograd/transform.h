// Winograd F(2x2, 3x3) as functions of values: Y = A' [(G g G') * (B' d B)] A, one multiplication for each of 16
// positions.
// A tile of 2 x 2 outputs needs 4 x 4 inputs; with dilation both are taken `dilation` apart and nothing else changes.
// Source: Lavin and Gray, Fast algorithms for convolutional neural networks (CVPR 2016).
#pragma once

#include <algorithm>
#include <cstring>

#include "../vector.h"

namespace atrous::winograd {

constexpr int64_t POSITIONS = 16;  // elements of a transformed tile
constexpr int64_t PANEL = 16;      // output channels that are computed together
constexpr int64_t LANES = 8;

using Vector = float __attribute__((vector_size(32)));

inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

template <class S>
Vector load(const S* p) {
  float values[LANES];
  for (int i = 0; i < LANES; ++i) values[i] = widen(p[i]);
  return load(values);
}

// One axis of B' d B.
inline void input_axis(const Vector d[4], Vector v[4]) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}

// Writes B' d B of 8 channels of the 16 pixels to p + position * step.
template <class S>
void transform_input(const S* const pixels[POSITIONS], int64_t channel, float* p, int64_t step) {
  Vector columns[4][4];
  for (int j = 0; j < 4; ++j) {
    Vector d[4];
    for (int i = 0; i < 4; ++i) d[i] = load(pixels[4 * i + j] + channel);
    input_axis(d, columns[j]);
  }
  for (int i = 0; i < 4; ++i) {
    const Vector d[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
    Vector v[4];
    input_axis(d, v);
    for (int j = 0; j < 4; ++j) store(p + (4 * i + j) * step, v[j]);
  }
}

// Writes A' m A of 8 channels to y + (2 * a + b) * PANEL; m is at p + position * step.
inline void transform_output(const float* p, int64_t step, float* y) {
  Vector rows[2][4];
  for (int j = 0; j < 4; ++j) {
    const Vector m0 = load(p + j * step), m1 = load(p + (4 + j) * step), m2 = load(p + (8 + j) * step),
                 m3 = load(p + (12 + j) * step);
    rows[0][j] = m0 + m1 + m2;
    rows[1][j] = m1 - m2 - m3;
  }
  for (int a = 0; a < 2; ++a) {
    const Vector* m = rows[a];
    store(y + 2 * a * PANEL, m[0] + m[1] + m[2]);
    store(y + (2 * a + 1) * PANEL, m[1] - m[2] - m[3]);
  }
}

// u = G g G'; T is a scalar or a SIMD vector.
template <class T>
void transform_weight(const T g[9], T u[POSITIONS]) {
  const auto axis = [](const T& a, const T& b, const T& c, T* r) {
    r[0] = a;
    r[1] = (a + b + c) / 2;
    r[2] = (a - b + c) / 2;
    r[3] = c;
  };
  T rows[3][4];
  for (int i = 0; i < 3; ++i) axis(g[3 * i], g[3 * i + 1], g[3 * i + 2], rows[i]);
  for (int j = 0; j < 4; ++j) {
    T column[4];
    axis(rows[0][j], rows[1][j], rows[2][j], column);
    for (int i = 0; i < 4; ++i) u[4 * i + j] = column[i];
  }
}

// g from u = G g G'.
inline void recover_weight(const float u[POSITIONS], float g[9]) {
  for (int i = 0; i < 3; ++i) {
    float row[4];
    for (int j = 0; j < 4; ++j) row[j] = i == 1 ? u[4 + j] - u[8 + j] : u[6 * i + j];
    g[3 * i] = row[0];
    g[3 * i + 1] = row[1] - row[2];
    g[3 * i + 2] = row[3];
  }
}

// True if one of `count` vectors has a NaN.
inline bool has_nan(const float* values, int64_t count) {
  auto nan = Vector{} != Vector{};
  for (int64_t i = 0; i < count; ++i) {
    const Vector v = load(values + i * LANES);
    nan |= v != v;
  }
  for (int i = 0; i < LANES; ++i)
    if (nan[i]) return true;
  return false;
}

}  // namespace atrous::winograd
