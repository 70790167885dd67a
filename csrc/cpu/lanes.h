// Sums in a fixed number of lanes: they vectorize, and have the same bits on every machine.
#pragma once

#include <cstring>

#include "vector.h"

namespace atrous {

// A vector of 32 bytes: one AVX2 register, two SSE registers.
template <class T>
struct Register {
  using type __attribute__((vector_size(32))) = T;
  static constexpr int64_t size = 32 / sizeof(T);
};

// Four registers, which hide the four cycles of an addition. Passed by reference, since by value the ABI would depend
// on compiler flags.
template <class T>
struct Lanes {
  static constexpr int64_t size = 4 * Register<T>::size;
  typename Register<T>::type part[4];

  void fill(T value) {
    for (auto& p : part) p = value - typename Register<T>::type{};
  }
  template <class S>
  void load(const S* values) {
    if constexpr (std::is_same_v<S, T>) {  // one register at a time: a copy of all four would go through memory
      for (int i = 0; i < 4; ++i) std::memcpy(&part[i], values + i * Register<T>::size, sizeof part[i]);
    } else {
      T wide[size];
      for (int64_t i = 0; i < size; ++i) wide[i] = widen(values[i]);
      load(wide);
    }
  }
  void store(T* values) const {
    for (int i = 0; i < 4; ++i) std::memcpy(values + i * Register<T>::size, &part[i], sizeof part[i]);
  }
  // Adds the first `count` lanes to memory.
  void add_to(T* values, int64_t count) const {
    if (count == size) {
      Lanes sum{};
      sum.load(values);
      sum.add(*this);
      sum.store(values);
    } else {
      T own[size];
      store(own);
      for (int64_t i = 0; i < count; ++i) values[i] += own[i];
    }
  }
  void add(const Lanes& other) {
    for (int i = 0; i < 4; ++i) part[i] += other.part[i];
  }
  T total() const {
    T values[Register<T>::size];
    const typename Register<T>::type folded = (part[0] + part[1]) + (part[2] + part[3]);
    std::memcpy(values, &folded, sizeof folded);
    for (int64_t half = Register<T>::size / 2; half; half /= 2)
      for (int64_t i = 0; i < half; ++i) values[i] += values[i + half];
    return values[0];
  }
};

}  // namespace atrous
