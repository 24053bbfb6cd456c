// What a decoded token needs besides linear maps: attention of one query to all keys, and RMS norms.
#include <cmath>
#include <vector>

#include "simd.h"

namespace autoprune {
namespace {

// --- attention: one query of one head

template <typename T>
inline __attribute__((always_inline)) void plain_head(const Head<T>& at, const T* query, T* out, float* scores, int64_t keys, int64_t size, float scale) {
  float top = -INFINITY, total = 0;
  for (int64_t j = 0; j < keys; j++) {
    const T* key = at.keys + j * at.key_stride;
    float sums[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= size; i += 16)
      for (int l = 0; l < 16; l++) sums[l] += wide(query[i + l]) * wide(key[i + l]);
    for (; i < size; i++) sums[i % 16] += wide(query[i]) * wide(key[i]);
    for (int step = 8; step; step /= 2)
      for (int l = 0; l < step; l++) sums[l] += sums[l + step];
    scores[j] = sums[0] * scale;
    top = scores[j] > top ? scores[j] : top;
  }
  for (int64_t j = 0; j < keys; j++) total += scores[j] = std::exp(scores[j] - top);
  std::vector<float> sum(size, 0.0f);
  for (int64_t j = 0; j < keys; j++)
    for (int64_t i = 0; i < size; i++) sum[i] += scores[j] * wide(at.values[j * at.value_stride + i]);
  for (int64_t i = 0; i < size; i++) put(out + i, sum[i] / total);
}

AVX512 inline __m512 sixteen(const bf16* at, __mmask16 inside) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, at)), 16));
}
AVX512 inline __m512 sixteen(const float* at, __mmask16 inside) { return _mm512_maskz_loadu_ps(inside, at); }

constexpr int64_t MOST = 256;  // channels of a head that fit the registers' array

template <typename T>
AVX512 void wide_head(const Head<T>& at, const T* query, T* out, float* scores, int64_t keys, int64_t size, float scale) {
  __m512 held[MOST / 16];
  const int64_t parts = (size + 15) / 16;
  const auto inside = [&](int64_t part) { return static_cast<__mmask16>(size - 16 * part >= 16 ? 0xffff : (1u << (size - 16 * part)) - 1); };
  for (int64_t p = 0; p < parts; p++) held[p] = sixteen(query + 16 * p, inside(p));
  float top = -INFINITY, total = 0;
  for (int64_t j = 0; j < keys; j++) {
    const T* key = at.keys + j * at.key_stride;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t p = 0; p < parts; p++) sum = _mm512_fmadd_ps(held[p], sixteen(key + 16 * p, inside(p)), sum);
    scores[j] = _mm512_reduce_add_ps(sum) * scale;
    top = scores[j] > top ? scores[j] : top;
  }
  for (int64_t j = 0; j < keys; j++) total += scores[j] = std::exp(scores[j] - top);
  for (int64_t p = 0; p < parts; p++) held[p] = _mm512_setzero_ps();
  for (int64_t j = 0; j < keys; j++) {
    const __m512 share = _mm512_set1_ps(scores[j]);
    const T* value = at.values + j * at.value_stride;
    for (int64_t p = 0; p < parts; p++) held[p] = _mm512_fmadd_ps(share, sixteen(value + 16 * p, inside(p)), held[p]);
  }
  alignas(64) float sums[MOST];
  for (int64_t p = 0; p < parts; p++) _mm512_store_ps(sums + 16 * p, held[p]);
  for (int64_t i = 0; i < size; i++) put(out + i, sums[i] / total);
}

template <typename T>
void scalar_head(const Head<T>& at, const T* query, T* out, float* scores, int64_t keys, int64_t size, float scale) { plain_head(at, query, out, scores, keys, size, scale); }
template <typename T>
AVX2 void avx2_head(const Head<T>& at, const T* query, T* out, float* scores, int64_t keys, int64_t size, float scale) { plain_head(at, query, out, scores, keys, size, scale); }

// --- norms: rounded to the dtype before the weight is multiplied, as transformers does

template <typename T>
inline __attribute__((always_inline)) void plain_norm(const T* x, const T* weight, T* y, int64_t size, float eps) {
  float sums[64] = {0};
  int64_t i = 0;
  for (; i + 64 <= size; i += 64)
    for (int l = 0; l < 64; l++) sums[l] += wide(x[i + l]) * wide(x[i + l]);
  for (; i < size; i++) sums[i % 64] += wide(x[i]) * wide(x[i]);
  for (int step = 32; step; step /= 2)
    for (int l = 0; l < step; l++) sums[l] += sums[l + step];
  const float scale = 1.0f / std::sqrt(sums[0] / static_cast<float>(size) + eps);
  for (i = 0; i < size; i++) {
    T rounded;
    put(&rounded, wide(x[i]) * scale);
    put(y + i, wide(rounded) * wide(weight[i]));
  }
}

template <typename T>
void scalar_norm(const T* x, const T* weight, T* y, int64_t size, float eps) { plain_norm(x, weight, y, size, eps); }
template <typename T>
AVX2 void avx2_norm(const T* x, const T* weight, T* y, int64_t size, float eps) { plain_norm(x, weight, y, size, eps); }
template <typename T>
AVX512 void avx512_norm(const T* x, const T* weight, T* y, int64_t size, float eps) { plain_norm(x, weight, y, size, eps); }

}  // namespace

template <typename T>
void attend(const T* query, const Head<T>& first, T* out, const Sizes& of, float scale, int threads, int most) {
  using Run = void (*)(const Head<T>&, const T*, T*, float*, int64_t, int64_t, float);
  const Run runs[] = {scalar_head<T>, avx2_head<T>, wide_head<T>, wide_head<T>};
  int use = level() < most ? level() : most;
  if (of.size > MOST && use > 1) use = 1;
  const int64_t each = of.heads / of.groups;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && of.heads * of.keys > 4096)
  for (int64_t h = 0; h < of.batch * of.heads; h++) {
    static thread_local std::vector<float> scores;
    scores.resize(of.keys);
    const int64_t b = h / of.heads, group = h % of.heads / each;
    const Head<T> at{first.keys + b * of.key_batch + group * of.key_group, first.values + b * of.value_batch + group * of.value_group, first.key_stride, first.value_stride};
    runs[use](at, query + h * of.size, out + h * of.size, scores.data(), of.keys, of.size, scale);
  }
}

template <typename T>
void rms_norm(const T* x, const T* weight, T* y, int64_t rows, int64_t size, float eps, int threads, int most) {
  using Run = void (*)(const T*, const T*, T*, int64_t, float);
  const Run runs[] = {scalar_norm<T>, avx2_norm<T>, avx512_norm<T>, avx512_norm<T>};
  const Run run = runs[level() < most ? level() : most];
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows >= 16)
  for (int64_t r = 0; r < rows; r++) run(x + r * size, weight, y + r * size, size, eps);
}

template void attend(const bf16*, const Head<bf16>&, bf16*, const Sizes&, float, int, int);
template void attend(const float*, const Head<float>&, float*, const Sizes&, float, int, int);
template void rms_norm(const bf16*, const bf16*, bf16*, int64_t, int64_t, float, int, int);
template void rms_norm(const float*, const float*, float*, int64_t, int64_t, float, int, int);

}  // namespace autoprune
