// Dense bf16 matrix times one or a few tokens: as fast as the weights can be read.
#include "simd.h"

namespace autoprune {
namespace {

constexpr int64_t ROWS = 32;  // a thread takes so many at a time

inline __attribute__((always_inline)) void plain(const bf16* w, const bf16* x, bf16* y, int64_t from, int64_t to, int64_t columns, int64_t stride, int64_t tokens) {
  for (int64_t m = from; m < to; m++)
    for (int64_t t = 0; t < tokens; t++) {
      const bf16 *row = w + m * columns, *token = x + t * columns;
      float sums[16] = {0};
      int64_t k = 0;
      for (; k + 16 <= columns; k += 16)
        for (int i = 0; i < 16; i++) sums[i] += widen(row[k + i]) * widen(token[k + i]);
      for (; k < columns; k++) sums[k & 15] += widen(row[k]) * widen(token[k]);
      for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) sums[i] += sums[i + step];
      y[t * stride + m] = narrow(sums[0]);
    }
}

#define GIVEN const bf16 *w, const bf16 *x, bf16 *y, int64_t from, int64_t to, int64_t columns, int64_t stride, int64_t tokens
void scalar(GIVEN) { plain(w, x, y, from, to, columns, stride, tokens); }
AVX2 void avx2(GIVEN) { plain(w, x, y, from, to, columns, stride, tokens); }
AVX512 void avx512(GIVEN) { plain(w, x, y, from, to, columns, stride, tokens); }

AVX512BF16 inline __m512bh pairs(const bf16* at) { return (__m512bh)_mm512_loadu_si512(at); }

// N rows and T tokens at a time share what is read of each other.
template <int N, int T>
AVX512BF16 inline __attribute__((always_inline)) void dots(const bf16* w, const bf16* x, bf16* y, int64_t columns, int64_t stride) {
  __m512 sums[N][T][2];
  for (int r = 0; r < N; r++)
    for (int t = 0; t < T; t++) sums[r][t][0] = sums[r][t][1] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 64 <= columns; k += 64) {
    __m512bh weight[N][2];
    for (int r = 0; r < N; r++)
      for (int h = 0; h < 2; h++) weight[r][h] = pairs(w + r * columns + k + 32 * h);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
      for (int h = 0; h < 2; h++) {
        const __m512bh token = pairs(x + t * columns + k + 32 * h);
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) sums[r][t][h] = _mm512_dpbf16_ps(sums[r][t][h], weight[r][h], token);
      }
  }
  for (; k < columns; k += 32) {
    const int64_t left = columns - k;
    const __mmask32 inside = left >= 32 ? ~0u : (1u << left) - 1;
    for (int t = 0; t < T; t++) {
      const __m512bh token = (__m512bh)_mm512_maskz_loadu_epi16(inside, x + t * columns + k);
      for (int r = 0; r < N; r++)
        sums[r][t][0] = _mm512_dpbf16_ps(sums[r][t][0], (__m512bh)_mm512_maskz_loadu_epi16(inside, w + r * columns + k), token);
    }
  }
  for (int r = 0; r < N; r++)
    for (int t = 0; t < T; t++) y[t * stride + r] = narrow(_mm512_reduce_add_ps(_mm512_add_ps(sums[r][t][0], sums[r][t][1])));
}

template <int N, int T>
AVX512BF16 void group(const bf16* w, const bf16* x, bf16* y, int64_t from, int64_t to, int64_t columns, int64_t stride) {
  int64_t m = from;
  for (; m + N <= to; m += N) dots<N, T>(w + m * columns, x, y + m, columns, stride);
  for (; m < to; m++) dots<1, T>(w + m * columns, x, y + m, columns, stride);
}

AVX512BF16 void bf16_dots(GIVEN) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) group<2, 4>(w, x + t * columns, y + t * stride, from, to, columns, stride);
  for (; t + 2 <= tokens; t += 2) group<2, 2>(w, x + t * columns, y + t * stride, from, to, columns, stride);
  if (t < tokens) group<4, 1>(w, x + t * columns, y + t * stride, from, to, columns, stride);
}

}  // namespace

void dense_bf16(const bf16* w, const bf16* x, bf16* y, int64_t rows, int64_t columns, int64_t tokens, int threads, int most) {
  using Run = void (*)(const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t);
  const Run runs[] = {scalar, avx2, avx512, bf16_dots};
  const Run run = runs[level() < most ? level() : most];
  const int64_t chunks = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t to = (c + 1) * ROWS < rows ? (c + 1) * ROWS : rows;
    run(w, x, y, c * ROWS, to, columns, rows, tokens);
  }
}

}  // namespace autoprune
