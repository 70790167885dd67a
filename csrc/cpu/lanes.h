// Sums in a fixed number of lanes, so that they can be vector code and have the same bits on every machine.
#pragma once

#include <cstring>

#include "vector.h"

namespace atrous {

// 32 bytes: one register of AVX2, two of SSE.
template <class T>
struct Register {
  using type __attribute__((vector_size(32))) = T;
  static constexpr int64_t size = 32 / sizeof(T);
};

// Four registers hide that an addition takes four cycles. Passed by reference: by value the ABI would depend on flags.
template <class T>
struct Lanes {
  static constexpr int64_t size = 4 * Register<T>::size;
  typename Register<T>::type part[4];

  void fill(T value) {
    for (auto& p : part) p = value - typename Register<T>::type{};
  }
  template <class S>
  void load(const S* values) {
    if constexpr (std::is_same_v<S, T>) {  // one by one: a copy of all would go through memory
      for (int i = 0; i < 4; ++i) std::memcpy(&part[i], values + i * Register<T>::size, sizeof part[i]);
    } else {
      T wide[size];
      for (int64_t i = 0; i < size; ++i) wide[i] = widen(values[i]);
      load(wide);
    }
  }
  // `count` values, the rest as in `other`.
  template <class S>
  void load(const S* values, int64_t count, const Lanes& other) {
    T wide[size];
    other.store(wide);
    for (int64_t i = 0; i < count; ++i) wide[i] = widen(values[i]);
    load(wide);
  }
  void store(T* values) const {
    for (int i = 0; i < 4; ++i) std::memcpy(values + i * Register<T>::size, &part[i], sizeof part[i]);
  }
  // Adds the first `count` to memory.
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
