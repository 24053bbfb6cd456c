// How fast memory can be read and how fast products can be summed: what the kernels are held against.
#include "avx2.h"

namespace autoprune {
namespace {

AVX512 float sum512(const float* x, int64_t count) {
  __m512 sums[8];
  for (auto& s : sums) s = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 128 <= count; i += 128)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) sums[j] = _mm512_add_ps(sums[j], _mm512_loadu_ps(x + i + 16 * j));
  float rest = 0;
  for (; i < count; i++) rest += x[i];
  for (int j = 1; j < 8; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return rest + _mm512_reduce_add_ps(sums[0]);
}

float sum(const float* x, int64_t count) {
  float sums[16] = {0};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; j++) sums[j] += x[i + j];
  for (; i < count; i++) sums[0] += x[i];
  for (int j = 1; j < 16; j++) sums[0] += sums[j];
  return sums[0];
}

// Sixteen sums at once, as independent as the kernels' own.
AVX512BF16 float products_bf16(int64_t rounds) {
  __m512 sums[16];
  for (auto& s : sums) s = _mm512_setzero_ps();
  __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3f80);
  asm("" : "+v"(a), "+v"(b));
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) sums[j] = _mm512_dpbf16_ps(sums[j], a, b);
  for (int j = 1; j < 16; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}

AVX512 float products_f32(int64_t rounds) {
  __m512 sums[16];
  for (auto& s : sums) s = _mm512_setzero_ps();
  __m512 a = _mm512_set1_ps(1), b = a;
  asm("" : "+v"(a), "+v"(b));
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) sums[j] = _mm512_fmadd_ps(a, b, sums[j]);
  for (int j = 1; j < 16; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}

}  // namespace

int team(int threads) {
  int found = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : found)
  found += 1;
  return found;
}

int64_t products(int64_t rounds, bool narrow) {
  const int use = level();
  if (use < 1) return 0;
  const bool pairs = narrow && use >= 3, wide = use >= 2 && (pairs || !narrow);
  volatile float kept = pairs ? products_bf16(rounds) : wide ? products_f32(rounds) : avx2::products(rounds);
  (void)kept;
  return rounds * (wide ? 16 * 16 : 12 * 8) * (pairs ? 4 : 2);
}

float read_f32(const float* x, int64_t count, int threads) {
  constexpr int64_t PIECE = 1 << 16;
  float total = 0;
  const auto run = level() >= 2 ? sum512 : sum;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total) if (threads > 1)
  for (int64_t i = 0; i < count; i += PIECE) total += run(x + i, count - i < PIECE ? count - i : PIECE);
  return total;
}

}  // namespace autoprune
