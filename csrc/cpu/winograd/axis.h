// F(M, 3), Winograd's transforms along one axis, as functions of values. The matrices of M = 4 are those of the points
// 0, +-5/8, +-3/2 and infinity, whose rounding errors are less than half of those of the usual 0, +-1, +-2:
// Barabasz et al., Error analysis and improving the accuracy of Winograd convolution (TOMS 2020).
#pragma once

#include <cstring>
#include <type_traits>

#include "../vector.h"

namespace atrous::winograd {

template <int64_t LANES, class T = float>
using Vector __attribute__((vector_size(LANES * sizeof(T)))) = T;

// Vectors are passed by reference, since by value the ABI would depend on compiler flags.
template <class V>
void load(const float* p, V& v) {
  std::memcpy(&v, p, sizeof v);
}
template <class V>
void store(float* p, const V& v) {
  std::memcpy(p, &v, sizeof v);
}

template <class V, class S>
void load(const S* p, V& v) {
  constexpr int LANES = sizeof(V) / sizeof(float);
  float values[LANES];
  for (int i = 0; i < LANES; ++i) values[i] = widen(p[i]);
  load(values, v);
}

// A constant in the type of V's elements.
template <class V>
constexpr auto constant(double value) {
  return std::remove_reference_t<decltype(V{}[0])>(value);
}

// F(M, 3) along one axis; V is a vector.
template <int M>
struct Axis;

// The points 0, 1, -1 and infinity.
template <>
struct Axis<2> {
  template <class V>
  static void input(const V* d, V* v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <class V>
  static void output(const V* m, V* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <class V>
  static void output_gradient(const V* y, V* m) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
  template <class V>
  static void weight_gradient(const V* u, V* g) {
    g[0] = u[0] + (u[1] + u[2]) * 0.5f;
    g[1] = (u[1] - u[2]) * 0.5f;
    g[2] = (u[1] + u[2]) * 0.5f + u[3];
  }
  template <class V>
  static void weight(const V* g, V* u) {
    u[0] = g[0];
    u[1] = (g[0] + g[1] + g[2]) * constant<V>(0.5);
    u[2] = (g[0] - g[1] + g[2]) * constant<V>(0.5);
    u[3] = g[2];
  }
};

// The points 0, P, -P, Q, -Q and infinity. The constants of the input and output transforms are exact in fp32.
template <>
struct Axis<4> {
  static constexpr double P = 0.625, Q = 1.5, PP = P * P, QQ = Q * Q;
  static constexpr double AT_P = 2 * PP * (PP - QQ), AT_Q = 2 * QQ * (QQ - PP);  // products of a point's distances

  template <class V>
  static void input(const V* d, V* v) {
    constexpr float p = P, q = Q, pp = PP, qq = QQ, sum = PP + QQ, product = PP * QQ;
    v[0] = d[4] - sum * d[2] + product * d[0];
    const V even_p = d[4] - qq * d[2], odd_p = d[3] - qq * d[1];
    v[1] = even_p + p * odd_p;
    v[2] = even_p - p * odd_p;
    const V even_q = d[4] - pp * d[2], odd_q = d[3] - pp * d[1];
    v[3] = even_q + q * odd_q;
    v[4] = even_q - q * odd_q;
    v[5] = d[5] - sum * d[3] + product * d[1];
  }
  template <class V>
  static void output(const V* m, V* y) {
    constexpr float p = P, q = Q, pp = PP, qq = QQ, ppp = P * PP, qqq = Q * QQ;
    const V even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + even_p + even_q;
    y[1] = p * odd_p + q * odd_q;
    y[2] = pp * even_p + qq * even_q;
    y[3] = m[5] + ppp * odd_p + qqq * odd_q;
  }
  template <class V>
  static void output_gradient(const V* y, V* m) {
    constexpr float p = P, q = Q, pp = PP, qq = QQ;
    m[0] = y[0];
    const V even_p = y[0] + pp * y[2], odd_p = y[1] + pp * y[3];
    m[1] = even_p + p * odd_p;
    m[2] = even_p - p * odd_p;
    const V even_q = y[0] + qq * y[2], odd_q = y[1] + qq * y[3];
    m[3] = even_q + q * odd_q;
    m[4] = even_q - q * odd_q;
    m[5] = y[3];
  }
  template <class V>
  static void weight_gradient(const V* u, V* g) {
    constexpr float zero = 1 / (PP * QQ), p = 1 / AT_P, q = 1 / AT_Q;
    const V even_p = p * (u[1] + u[2]), even_q = q * (u[3] + u[4]);
    g[0] = zero * u[0] + even_p + even_q;
    g[1] = float(P / AT_P) * (u[1] - u[2]) + float(Q / AT_Q) * (u[3] - u[4]);
    g[2] = u[5] + float(PP) * even_p + float(QQ) * even_q;
  }
  template <class V>
  static void weight(const V* g, V* u) {
    constexpr double zero = 1 / (PP * QQ), p = 1 / AT_P, q = 1 / AT_Q;
    u[0] = constant<V>(zero) * g[0];
    const V even_p = (g[0] + g[2] * constant<V>(PP)) * constant<V>(p), odd_p = g[1] * constant<V>(P * p);
    const V even_q = (g[0] + g[2] * constant<V>(QQ)) * constant<V>(q), odd_q = g[1] * constant<V>(Q * q);
    u[1] = even_p + odd_p;
    u[2] = even_p - odd_p;
    u[3] = even_q + odd_q;
    u[4] = even_q - odd_q;
    u[5] = g[2];
  }
};

}  // namespace atrous::winograd
