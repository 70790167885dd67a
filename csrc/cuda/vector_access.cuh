// What a thread reads and writes at once: sixteen bytes of a tensor, or another number of elements.
#pragma once

#include <cuda_runtime.h>

#include "../half_types.h"

namespace atrous::cuda {

template <class S, int COUNT = 16 / sizeof(S)>
struct alignas(COUNT * sizeof(S)) Pack {
  static constexpr int SIZE = COUNT;
  S at[SIZE];
};

// As the hardware moves it.
template <class S, int COUNT>
using Word = std::conditional_t<sizeof(Pack<S, COUNT>) == 16, uint4, uint2>;

template <class S, int COUNT>
__device__ Pack<S, COUNT> load(const S* from) {
  const Word<S, COUNT> word = *reinterpret_cast<const Word<S, COUNT>*>(from);
  Pack<S, COUNT> pack;
  static_assert(sizeof word == sizeof pack);
  std::memcpy(&pack, &word, sizeof word);
  return pack;
}

template <class S, int COUNT>
__device__ void store(S* to, const Pack<S, COUNT>& pack) {
  Word<S, COUNT> word;
  std::memcpy(&word, &pack, sizeof word);
  __stwb(reinterpret_cast<Word<S, COUNT>*>(to), word);  // an assignment would become one store an element
}

// Whether every pack is whole and lies at a multiple of 16 bytes: a type, since the loads of a loop that asks at run
// time wait for one another.
using Whole = std::true_type;
using Parted = std::false_type;

// The first `count` elements, the others zero.
template <class S>
__device__ Pack<S> load(const S* from, int, Whole) {
  return load<S, Pack<S>::SIZE>(from);
}

template <class S>
__device__ Pack<S> load(const S* from, int count, Parted) {
  Pack<S> pack{};
#pragma unroll
  for (int i = 0; i < Pack<S>::SIZE; ++i)
    if (i < count) pack.at[i] = from[i];
  return pack;
}

template <class S>
__device__ void store(S* to, const Pack<S>& pack, int, Whole) {
  store(to, pack);
}

template <class S>
__device__ void store(S* to, const Pack<S>& pack, int count, Parted) {
#pragma unroll
  for (int i = 0; i < Pack<S>::SIZE; ++i)
    if (i < count) to[i] = pack.at[i];
}

inline bool divides(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether none of them lies off a multiple of 16 bytes; one that is absent does not.
template <class... Pointers>
bool aligned(const Pointers*... pointers) {
  return (divides(pointers) && ...);
}

}  // namespace atrous::cuda
