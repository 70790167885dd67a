// Functions compiled once for each instruction set, and loops that become vector code.
#pragma once

#include "../half_types.h"

// Compiles a function, with all that it calls, for three instruction sets and picks one when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ATROUS_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ATROUS_CLONES
#endif

// The iterations of the next loop are independent, whatever its pointers look like: y may be z.
#if defined(__clang__)
#define ATROUS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ATROUS_INDEPENDENT _Pragma("GCC ivdep")
#else
#define ATROUS_INDEPENDENT
#endif

// The next loop becomes vector code before it is unrolled, also where its length is a small constant.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_ROLLED _Pragma("GCC unroll 1")
#else
#define ATROUS_ROLLED
#endif
