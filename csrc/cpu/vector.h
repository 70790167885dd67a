// Macros for functions compiled once per instruction set and for vectorized loops.
#pragma once

#include "../half_types.h"

// Compiles a function and its callees for three instruction sets; the loader picks one. A build with a sanitizer, which
// takes long to compile, defines it as empty.
#ifdef ATROUS_CLONES
#elif defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ATROUS_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATROUS_CLONES
#endif

// Asserts that the next loop's iterations are independent although its pointers may alias: y may be z.
#if defined(__clang__)
#define ATROUS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ATROUS_INDEPENDENT _Pragma("GCC ivdep")
#else
#define ATROUS_INDEPENDENT
#endif

// Keeps the next loop from being unrolled before it is vectorized, even if its length is a small constant.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_ROLLED _Pragma("GCC unroll 1")
#else
#define ATROUS_ROLLED
#endif
