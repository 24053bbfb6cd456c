// Unstructured bf16 matrix (values row by row, a bit a weight) times one or a few tokens.
#include "simd.h"

namespace autoprune {
namespace {

constexpr int64_t ROWS = 16;

struct Row {
  const uint8_t* bits;
  const bf16* values;
};

inline __attribute__((always_inline)) float plain(Row row, const bf16* x, int64_t columns) {
  float sum = 0;
  for (int64_t byte = 0; byte * 8 < columns; byte++)
    for (unsigned left = row.bits[byte]; left; left &= left - 1)
      sum += widen(*row.values++) * widen(x[byte * 8 + __builtin_ctz(left)]);
  return sum;
}

float scalar(Row row, const bf16* x, int64_t columns) { return plain(row, x, columns); }

AVX512BITS inline __m512i loaded(const void* from) {  // as a load of its own: the expanding load is microcoded
  __m512i found = _mm512_loadu_si512(from);
  asm("" : "+v"(found));
  return found;
}

// `values` must be readable for 64 bytes beyond the row's last.
AVX512BITS float expanded(Row row, const bf16* x, int64_t columns) {
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  const bf16* v = row.values;
  int64_t k = 0;
  for (; k + 128 <= columns; k += 128) {
    uint32_t mask[4];
    std::memcpy(mask, row.bits + k / 8, 16);
    _mm_prefetch(reinterpret_cast<const char*>(v) + 2048, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(v) + 2112, _MM_HINT_T0);
    const bf16* at = v;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      __m512i w = _mm512_maskz_expand_epi16(mask[i], loaded(at));
      sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)w, (__m512bh)_mm512_loadu_si512(x + k + 32 * i));
      at += __builtin_popcount(mask[i]);
    }
    v = at;
  }
  for (; k < columns; k += 32) {
    const int64_t left = columns - k < 32 ? columns - k : 32;
    const __mmask32 inside = left == 32 ? ~0u : (1u << left) - 1;
    uint32_t mask = 0;
    std::memcpy(&mask, row.bits + k / 8, (left + 7) / 8);
    __m512i w = _mm512_maskz_expand_epi16(mask, loaded(v));
    sums[0] = _mm512_dpbf16_ps(sums[0], (__m512bh)w, (__m512bh)_mm512_maskz_loadu_epi16(inside, x + k));
    v += __builtin_popcount(mask);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

}  // namespace

void bitmap_bf16(const int32_t* start, const uint8_t* bits, const bf16* values, const bf16* x, bf16* y, int64_t rows,
                 int64_t columns, int64_t tokens, int threads, int most) {
  const int64_t across = (columns + 7) / 8, chunks = (rows + ROWS - 1) / ROWS;
  const auto run = level() >= 3 && most >= 3 ? expanded : scalar;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++)
    for (int64_t m = c * ROWS; m < (c + 1) * ROWS && m < rows; m++)
      for (int64_t t = 0; t < tokens; t++)
        y[t * rows + m] = narrow(run({bits + m * across, values + start[m]}, x + t * columns, columns));
}

}  // namespace autoprune
