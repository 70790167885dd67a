// Winograd's transforms as functions of values. A tile of M x N outputs of a 3x3 convolution is
//   Y = A' [(G g G') * (B' d B)] A
// with one multiplication for each of (M + 2) x (N + 2) positions instead of 9 for each output. With dilation, the
// tile's outputs and inputs lie `dilation` apart and nothing else changes.
// Source: Lavin and Gray, Fast algorithms for convolutional neural networks (CVPR 2016).
#pragma once

#include <algorithm>

#include "axis.h"

namespace atrous::winograd {

constexpr int64_t PANEL = 16;  // output channels that are computed together
constexpr int64_t MAX_TILE = 4;

// Calls function(rows, columns) with the outputs of a tile of `positions` positions as compile-time constants.
template <class Function>
void with_tile(int64_t positions, Function&& function) {
  const std::integral_constant<int, 2> two;
  const std::integral_constant<int, 4> four;
  positions == 36 ? function(four, four) : positions == 24 ? function(four, two) : function(two, two);
}

// Writes B' d B to p + position * step; pixels are the tile's inputs.
template <int M, int N, class V, class S>
void transform_input(const S* const* pixels, int64_t channel, float* p, int64_t step) {
  V columns[N + 2][M + 2];
  for (int j = 0; j < N + 2; ++j) {
    V d[M + 2];
    for (int i = 0; i < M + 2; ++i) load(pixels[(N + 2) * i + j] + channel, d[i]);
    Axis<M>::input(d, columns[j]);
  }
  for (int i = 0; i < M + 2; ++i) {
    V d[N + 2], v[N + 2];
    for (int j = 0; j < N + 2; ++j) d[j] = columns[j][i];
    Axis<N>::input(d, v);
    for (int j = 0; j < N + 2; ++j) store(p + ((N + 2) * i + j) * step, v[j]);
  }
}

// Writes A' m A to y + output * PANEL; m is at p + position * step. Adds a NaN to `special` if an output is not finite,
// otherwise zero.
template <int M, int N, class V>
void transform_output(const float* p, int64_t step, float* y, V& special) {
  V rows[N + 2][M];
  for (int j = 0; j < N + 2; ++j) {
    V m[M + 2];
    for (int i = 0; i < M + 2; ++i) load(p + ((N + 2) * i + j) * step, m[i]);
    Axis<M>::output(m, rows[j]);
  }
  for (int a = 0; a < M; ++a) {
    V m[N + 2], outputs[N];
    for (int j = 0; j < N + 2; ++j) m[j] = rows[j][a];
    Axis<N>::output(m, outputs);
    for (int b = 0; b < N; ++b) {
      store(y + (N * a + b) * PANEL, outputs[b]);
      special += outputs[b] - outputs[b];
    }
  }
}

// u = G g G'.
template <int M, int N, class V>
void transform_weight(const V* g, V* u) {
  V columns[3][M + 2];
  for (int j = 0; j < 3; ++j) {
    const V column[3] = {g[j], g[3 + j], g[6 + j]};
    Axis<M>::weight(column, columns[j]);
  }
  for (int i = 0; i < M + 2; ++i) {
    const V row[3] = {columns[0][i], columns[1][i], columns[2][i]};
    Axis<N>::weight(row, u + (N + 2) * i);
  }
}

// The gradient of transform_output: writes A dY A' to p + position * step.
template <int M, int N, class V, class S>
void transform_output_gradient(const S* const* pixels, int64_t channel, float* p, int64_t step) {
  V columns[N][M + 2];
  for (int b = 0; b < N; ++b) {
    V y[M];
    for (int a = 0; a < M; ++a) load(pixels[N * a + b] + channel, y[a]);
    Axis<M>::output_gradient(y, columns[b]);
  }
  for (int i = 0; i < M + 2; ++i) {
    V y[N], m[N + 2];
    for (int b = 0; b < N; ++b) y[b] = columns[b][i];
    Axis<N>::output_gradient(y, m);
    for (int j = 0; j < N + 2; ++j) store(p + ((N + 2) * i + j) * step, m[j]);
  }
}

// The gradient of transform_weight: g = G' dU G; dU is at u + position * step.
template <int M, int N, class V>
void transform_weight_gradient(const float* u, int64_t step, V* g) {
  V columns[N + 2][3];
  for (int j = 0; j < N + 2; ++j) {
    V column[M + 2];
    for (int i = 0; i < M + 2; ++i) load(u + ((N + 2) * i + j) * step, column[i]);
    Axis<M>::weight_gradient(column, columns[j]);
  }
  for (int i = 0; i < 3; ++i) {
    V row[N + 2];
    for (int j = 0; j < N + 2; ++j) row[j] = columns[j][i];
    Axis<N>::weight_gradient(row, g + 3 * i);
  }
}

}  // namespace atrous::winograd
