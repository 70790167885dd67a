// Vectorized global memory access: a thread loads and stores 16 bytes at once.
#pragma once

#include <cuda_runtime.h>

#include "../half_types.h"

namespace atrous::cuda {

template <class S, int COUNT = 16 / sizeof(S)>
struct alignas(COUNT * sizeof(S)) AlignedVector {
  static constexpr int SIZE = COUNT;
  S at[SIZE];
};

// The hardware's vector type of the same size.
template <class S, int COUNT>
using Word = std::conditional_t<sizeof(AlignedVector<S, COUNT>) == 16, uint4, uint2>;

template <class S, int COUNT>
__device__ AlignedVector<S, COUNT> load(const S* from) {
  const Word<S, COUNT> word = *reinterpret_cast<const Word<S, COUNT>*>(from);
  AlignedVector<S, COUNT> vector;
  static_assert(sizeof word == sizeof vector);
  std::memcpy(&vector, &word, sizeof word);
  return vector;
}

template <class S, int COUNT>
__device__ void store(S* to, const AlignedVector<S, COUNT>& vector) {
  Word<S, COUNT> word;
  std::memcpy(&word, &vector, sizeof word);
  __stwb(reinterpret_cast<Word<S, COUNT>*>(to), word);  // an assignment would compile to one store per element
}

// Unmasked: every vector is whole and 16-byte aligned. Masked: element by element. They are types, because in a loop
// that tests this at run time the loads wait for one another.
using Unmasked = std::true_type;
using Masked = std::false_type;

// Loads the first `count` elements; the others are zero.
template <class S>
__device__ AlignedVector<S> load(const S* from, int, Unmasked) {
  return load<S, AlignedVector<S>::SIZE>(from);
}

template <class S>
__device__ AlignedVector<S> load(const S* from, int count, Masked) {
  AlignedVector<S> vector{};
#pragma unroll
  for (int i = 0; i < AlignedVector<S>::SIZE; ++i)
    if (i < count) vector.at[i] = from[i];
  return vector;
}

// Stores the first `count` elements.
template <class S>
__device__ void store(S* to, const AlignedVector<S>& vector, int, Unmasked) {
  store(to, vector);
}

template <class S>
__device__ void store(S* to, const AlignedVector<S>& vector, int count, Masked) {
#pragma unroll
  for (int i = 0; i < AlignedVector<S>::SIZE; ++i)
    if (i < count) to[i] = vector.at[i];
}

// True if every non-null pointer is 16-byte aligned.
template <class... Pointers>
bool aligned(const Pointers*... pointers) {
  return (is_aligned(pointers) && ...);
}

}  // namespace atrous::cuda
