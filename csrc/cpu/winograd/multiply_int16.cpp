// The GEMM of one Winograd position in 16-bit fixed point: the sums of a chunk are exact integers, so that the bits are
// the same on every machine.
#include "instruction_sets.h"
#include "multiply.h"

#ifdef ATROUS_HAS_LEVELS
#include <immintrin.h>
#endif

namespace atrous::winograd {

namespace {

// Unrolls the next loop completely, so that an array that it indexes can be registers.
#define ATROUS_UNROLLED _Pragma("GCC unroll 32")

constexpr int64_t PAIRS = CHUNK / 2;  // pairs of channels, which one instruction multiplies
using Integers = Vector<16, int32_t>;

const float* scales_of(const PanelGemm& gemm, int64_t panel) {
  return gemm.u + panel * gemm.u_step + gemm.channels / 2 * PANEL;
}

// For any processor.
ATROUS_CLONES void multiply_portable(const PanelGemm& gemm) {
  for (int64_t panel = 0; panel < gemm.panels; ++panel)
    for (int64_t tile = 0; tile < gemm.tiles; ++tile) {
      const auto* v = reinterpret_cast<const int16_t*>(gemm.v + tile * gemm.v_step);
      const auto* u = reinterpret_cast<const int16_t*>(gemm.u + panel * gemm.u_step);
      float totals[PANEL] = {};
      for (int64_t chunk = 0; chunk < gemm.channels / CHUNK; ++chunk) {
        int32_t sums[PANEL] = {};
        for (int64_t c = chunk * CHUNK; c < (chunk + 1) * CHUNK; c += 2, u += 2 * PANEL)
          for (int k = 0; k < PANEL; ++k) sums[k] += v[c] * u[2 * k] + v[c + 1] * u[2 * k + 1];
        const float scale = gemm.scales[chunk * gemm.tiles + tile];
        for (int k = 0; k < PANEL; ++k) totals[k] = std::fma(float(sums[k]), scale, totals[k]);
      }
      float* m = gemm.total(panel, tile);
      for (int k = 0; k < PANEL; ++k) m[k] = totals[k] * scales_of(gemm, panel)[k];
    }
}

#ifdef ATROUS_HAS_LEVELS
// noinline: in one function with its callers the compiler moves sums to the stack.
#define ATROUS_VNNI __attribute__((noinline, target("arch=x86-64-v4,avx512vnni")))

struct Int16 {
  template <class V, int PANELS, int TILES>
  ATROUS_VNNI static void multiply(const PanelGemm& gemm, int64_t first, const float* next, int64_t next_step) {
    const float* v = gemm.v + first * gemm.v_step;
    V totals[TILES][PANELS];
    ATROUS_UNROLLED for (int i = 0; i < TILES; ++i) ATROUS_UNROLLED for (int panel = 0; panel < PANELS; ++panel)
        totals[i][panel] = _mm512_setzero_ps();
    for (int64_t chunk = 0; chunk < gemm.channels / CHUNK; ++chunk) {
      __m512i sums[TILES][PANELS];
      ATROUS_UNROLLED for (int i = 0; i < TILES; ++i) ATROUS_UNROLLED for (int panel = 0; panel < PANELS; ++panel)
          sums[i][panel] = _mm512_setzero_si512();
      for (int64_t c = chunk * PAIRS; c < (chunk + 1) * PAIRS; ++c) {
        __m512i u[PANELS];
        ATROUS_UNROLLED for (int panel = 0; panel < PANELS; ++panel) {
          __builtin_prefetch(next + panel * gemm.u_step + c * next_step, 0, 3);
          u[panel] = _mm512_loadu_si512(gemm.u + panel * gemm.u_step + c * PANEL);
        }
        ATROUS_UNROLLED for (int i = 0; i < TILES; ++i) {
          int32_t pair;
          std::memcpy(&pair, v + i * gemm.v_step + c, sizeof pair);
          const __m512i x = _mm512_set1_epi32(pair);
          ATROUS_UNROLLED for (int panel = 0; panel < PANELS; ++panel)  //
              asm("vpdpwssd %2, %1, %0" : "+v"(sums[i][panel]) : "v"(u[panel]), "v"(x));
        }
      }
      ATROUS_UNROLLED for (int i = 0; i < TILES; ++i) {
        const V scale = _mm512_set1_ps(gemm.scales[chunk * gemm.tiles + first + i]);
        ATROUS_UNROLLED for (int panel = 0; panel < PANELS; ++panel)  //
            totals[i][panel] = _mm512_fmadd_ps(V(__builtin_convertvector(Integers(sums[i][panel]), Vector<16>)), scale,
                                               totals[i][panel]);
      }
    }
    ATROUS_UNROLLED for (int panel = 0; panel < PANELS; ++panel) {
      const V scale = _mm512_loadu_ps(scales_of(gemm, panel));
      ATROUS_UNROLLED for (int i = 0; i < TILES; ++i)  //
          _mm512_storeu_ps(gemm.total(panel, first + i), _mm512_mul_ps(totals[i][panel], scale));
    }
  }
};

// 28 of 32 registers hold sums and totals, as in multiply.cpp.
void multiply_vnni(const PanelGemm& gemm, const float* next) {
  if (gemm.panels > 1)
    multiply_panels<Int16, __m512, 2, 7>(gemm, next);
  else
    multiply_panels<Int16, __m512, 1, 14>(gemm, next);
}

const bool vnni = wide_vectors && __builtin_cpu_supports("avx512vnni");
#else
constexpr bool vnni = false;
void multiply_vnni(const PanelGemm&, const float*) {}
#endif

}  // namespace

void multiply_int16(const PanelGemm& gemm) {
  if (!vnni) return multiply_portable(gemm);
  for (int64_t panel = 0, count; panel < gemm.panels; panel += count) {
    count = std::min<int64_t>(2, gemm.panels - panel);
    multiply_vnni(gemm.at(panel, count), gemm.after(panel + count));
  }
}

}  // namespace atrous::winograd
