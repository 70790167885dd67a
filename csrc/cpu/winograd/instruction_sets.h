// How Winograd's functions are compiled: once for vectors of 16 floats (AVX-512), once for those of 8.
#pragma once

#include "../vector.h"

// Allows a multiply and an add to become fma in the marked function; flags.txt forbids it elsewhere.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_CONTRACT __attribute__((optimize("fp-contract=fast")))
#else
#define ATROUS_CONTRACT
#endif

// GCC 12 is the first to know these levels by name. A build with a sanitizer defines both attributes as empty.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ATROUS_HAS_LEVELS
#ifndef ATROUS_NARROW
#define ATROUS_AVX512 __attribute__((flatten, target("arch=x86-64-v4")))
#define ATROUS_NARROW __attribute__((flatten, target_clones("arch=x86-64-v3", "default")))
#endif
#else
#define ATROUS_AVX512
#define ATROUS_NARROW
#endif

namespace atrous::winograd {

#ifdef ATROUS_HAS_LEVELS
inline const bool wide_vectors = __builtin_cpu_supports("x86-64-v4");
#else
constexpr bool wide_vectors = false;
#endif

}  // namespace atrous::winograd
