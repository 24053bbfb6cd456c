// Dense matrix times one or a few tokens: as fast as the weights can be read.
#include "avx2.h"

namespace autoprune {
namespace {

constexpr int64_t ROWS = 32;    // a thread takes so many at a time
constexpr int64_t LONG = 6144;  // inputs: rows of more are read four at a time

template <typename T>
inline __attribute__((always_inline)) void plain(const T* w, const T* x, T* y, int64_t from, int64_t to, int64_t columns, int64_t stride, int64_t tokens) {
  constexpr int WIDE = 32;  // sums at a time, to hide the latency of adding
  for (int64_t m = from; m < to; m++)
    for (int64_t t = 0; t < tokens; t++) {
      const T *row = w + m * columns, *token = x + t * columns;
      float sums[WIDE] = {0};
      int64_t k = 0;
      for (; k + WIDE <= columns; k += WIDE)
        for (int i = 0; i < WIDE; i++) sums[i] += wide(row[k + i]) * wide(token[k + i]);
      for (; k < columns; k++) sums[k % WIDE] += wide(row[k]) * wide(token[k]);
      for (int step = WIDE / 2; step; step /= 2)
        for (int i = 0; i < step; i++) sums[i] += sums[i + step];
      put(y + t * stride + m, sums[0]);
    }
}

#define GIVEN const T *w, const T *x, T *y, int64_t from, int64_t to, int64_t columns, int64_t stride, int64_t tokens
template <typename T>
void scalar(GIVEN) { plain(w, x, y, from, to, columns, stride, tokens); }

// N rows and T tokens at a time share what is read of each other. One row is read in one stretch, as memory is read
// fastest; several rows pay where rows are long.
#define DOTS(NAME, TARGET, T, WIDE, LOADED, MASKED, DOT)                                                              \
  template <int N, int TOKENS>                                                                                        \
  TARGET inline __attribute__((always_inline)) void NAME(const T* w, const T* x, T* y, int64_t columns, int64_t stride) { \
    constexpr int H = N * TOKENS == 1 ? 4 : N * TOKENS <= 4 ? 2 : 1; /* registers of a row at a time */                \
    __m512 sums[N][TOKENS][H];                                                                                        \
    for (auto& row : sums)                                                                                            \
      for (auto& token : row)                                                                                         \
        for (auto& sum : token) sum = _mm512_setzero_ps();                                                            \
    int64_t k = 0;                                                                                                    \
    for (; k + H * WIDE <= columns; k += H * WIDE)                                                                    \
      _Pragma("GCC unroll 4") for (int h = 0; h < H; h++) {                                                           \
        const auto* at = x + k + h * WIDE;                                                                            \
        _Pragma("GCC unroll 4") for (int r = 0; r < N; r++) {                                                         \
          const auto weight = LOADED(w + r * columns + k + h * WIDE);                                                 \
          _Pragma("GCC unroll 4") for (int t = 0; t < TOKENS; t++) sums[r][t][h] = DOT(sums[r][t][h], weight, LOADED(at + t * columns)); \
        }                                                                                                             \
      }                                                                                                               \
    for (; k < columns; k += WIDE) {                                                                                  \
      const int64_t left = columns - k;                                                                               \
      const uint32_t inside = left >= WIDE ? ~0u : (1u << left) - 1;                                                  \
      for (int r = 0; r < N; r++) {                                                                                   \
        const auto weight = MASKED(inside, w + r * columns + k);                                                      \
        for (int t = 0; t < TOKENS; t++) sums[r][t][0] = DOT(sums[r][t][0], weight, MASKED(inside, x + t * columns + k)); \
      }                                                                                                               \
    }                                                                                                                 \
    for (int r = 0; r < N; r++)                                                                                       \
      for (int t = 0; t < TOKENS; t++) {                                                                              \
        __m512 sum = sums[r][t][0];                                                                                   \
        for (int h = 1; h < H; h++) sum = _mm512_add_ps(sum, sums[r][t][h]);                                          \
        put(y + t * stride + r, _mm512_reduce_add_ps(sum));                                                           \
      }                                                                                                               \
  }                                                                                                                   \
  template <int N, int TOKENS>                                                                                        \
  TARGET void NAME##_rows(const T* w, const T* x, T* y, int64_t from, int64_t to, int64_t columns, int64_t stride) {    \
    int64_t m = from;                                                                                                 \
    for (; m + N <= to; m += N) NAME<N, TOKENS>(w + m * columns, x, y + m, columns, stride);                          \
    for (; m < to; m++) NAME<1, TOKENS>(w + m * columns, x, y + m, columns, stride);                                  \
  }                                                                                                                   \
  TARGET void NAME##_tokens(GIVEN) {                                                                                    \
    int64_t t = 0;                                                                                                    \
    for (; t + 4 <= tokens; t += 4) NAME##_rows<1, 4>(w, x + t * columns, y + t * stride, from, to, columns, stride); \
    for (; t + 2 <= tokens; t += 2) NAME##_rows<1, 2>(w, x + t * columns, y + t * stride, from, to, columns, stride); \
    if (t < tokens && columns < LONG) NAME##_rows<1, 1>(w, x + t * columns, y + t * stride, from, to, columns, stride); \
    else if (t < tokens) NAME##_rows<4, 1>(w, x + t * columns, y + t * stride, from, to, columns, stride);            \
  }

#define PAIRS(at) ((__m512bh)_mm512_loadu_si512(at))
#define SOME_PAIRS(inside, at) ((__m512bh)_mm512_maskz_loadu_epi16(inside, at))
#define ADDED(sum, weight, token) _mm512_fmadd_ps(weight, token, sum)
#define T bf16
DOTS(pairs, AVX512BF16, bf16, 32, PAIRS, SOME_PAIRS, _mm512_dpbf16_ps)
#undef T
#define T float
DOTS(floats, AVX512, float, 16, _mm512_loadu_ps, _mm512_maskz_loadu_ps, ADDED)
#undef T

template <typename T>
using Run = void (*)(GIVEN);

template <typename T>
void in_chunks(const T* w, const T* x, T* y, int64_t rows, int64_t columns, int64_t tokens, int threads, Run<T> run) {
  const int64_t chunks = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t to = (c + 1) * ROWS < rows ? (c + 1) * ROWS : rows;
    run(w, x, y, c * ROWS, to, columns, rows, tokens);
  }
}

}  // namespace

void dense_bf16(const bf16* w, const bf16* x, bf16* y, int64_t rows, int64_t columns, int64_t tokens, int threads, int most) {
  const Run<bf16> runs[] = {scalar<bf16>, avx2::dense<bf16>, avx2::dense<bf16>, pairs_tokens};
  in_chunks(w, x, y, rows, columns, tokens, threads, runs[level() < most ? level() : most]);
}

void dense_f32(const float* w, const float* x, float* y, int64_t rows, int64_t columns, int64_t tokens, int threads, int most) {
  const Run<float> runs[] = {scalar<float>, avx2::dense<float>, floats_tokens, floats_tokens};
  in_chunks(w, x, y, rows, columns, tokens, threads, runs[level() < most ? level() : most]);
}

}  // namespace autoprune
