// Sixteen bytes of a tensor: what a thread reads and writes at once.
#pragma once

#include "../storage.h"

namespace atrous::cuda {

template <class S, int COUNT = 16 / sizeof(S)>
struct alignas(COUNT * sizeof(S)) Pack {
  static constexpr int SIZE = COUNT;
  S at[SIZE];
};

template <class S, int COUNT>
__device__ Pack<S, COUNT> load(const S* from) {
  return *reinterpret_cast<const Pack<S, COUNT>*>(from);
}

template <class S, int COUNT>
__device__ void store(S* to, const Pack<S, COUNT>& pack) {
  *reinterpret_cast<Pack<S, COUNT>*>(to) = pack;
}

// The first `count` elements, the others zero. aligned: all of them exist, at a multiple of 16 bytes.
template <class S>
__device__ Pack<S> load(const S* from, int count, bool aligned) {
  if (aligned) return load<S, Pack<S>::SIZE>(from);
  Pack<S> pack{};
#pragma unroll
  for (int i = 0; i < Pack<S>::SIZE; ++i)
    if (i < count) pack.at[i] = from[i];
  return pack;
}

template <class S>
__device__ void store(S* to, const Pack<S>& pack, int count, bool aligned) {
  if (aligned) return store(to, pack);
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
