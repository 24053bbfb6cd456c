// The kernels for AVX2: bf16 weights become fp32 in registers, kept ones find their places by a table of bytes.
#include "avx2.h"

namespace autoprune::avx2 {
namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int R = 8;  // outputs of a block
constexpr int64_t AHEAD = 4096;  // bytes of weights that are asked for early; fp32 is read faster without

INLINE AVX2 __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
// Of pairs of bf16 the first ones, and the second ones, in fp32.
INLINE AVX2 __m256 first(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
INLINE AVX2 __m256 second(__m256i pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000)))); }

INLINE AVX2 __m256 eight(const float* at) { return _mm256_loadu_ps(at); }
INLINE AVX2 __m256 eight(const bf16* at) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))), 16));
}

INLINE AVX2 float total(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
INLINE AVX2 int32_t total(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

// To the nearest, ties to even; a NaN stays one.
INLINE AVX2 __m128i narrow8(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i none = _mm256_srli_epi32(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), 16);
  const __m256i out = _mm256_blendv_epi8(rounded, none, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  return _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1));
}

INLINE AVX2 void transpose8(__m256 r[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// A block times 16 tokens, four of its outputs.
INLINE AVX2 void block(const bf16* values, const float* x, __m256 sum[4][2]) {
  const uint32_t* w = reinterpret_cast<const uint32_t*>(values);
  const __m256 a0 = _mm256_load_ps(x), a1 = _mm256_load_ps(x + 8), b0 = _mm256_load_ps(x + TILE), b1 = _mm256_load_ps(x + TILE + 8);
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    const __m256i pair = _mm256_set1_epi32(static_cast<int>(w[r]));
    const __m256 one = first(pair), two = second(pair);
    sum[r][0] = _mm256_fmadd_ps(two, b0, _mm256_fmadd_ps(one, a0, sum[r][0]));
    sum[r][1] = _mm256_fmadd_ps(two, b1, _mm256_fmadd_ps(one, a1, sum[r][1]));
  }
}
INLINE AVX2 void block(const float* w, const float* x, __m256 sum[4][2]) {
  const __m256 a0 = _mm256_load_ps(x), a1 = _mm256_load_ps(x + 8);
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    const __m256 weight = _mm256_broadcast_ss(w + r);
    sum[r][0] = _mm256_fmadd_ps(weight, a0, sum[r][0]);
    sum[r][1] = _mm256_fmadd_ps(weight, a1, sum[r][1]);
  }
}

}  // namespace

// --- blocks

AVX2 void one_bf16(const Blocks& at, const bf16* values, const bf16* token, bf16* y, int64_t row) {
  const uint32_t* x = reinterpret_cast<const uint32_t*>(token);
  const uint16_t* index = at.index;
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t j = at.start[row];
  const int64_t end = at.start[row + 1];
  for (; j + 4 <= end; j += 4) {
    const bf16* w = values + j * 16;
    for (int i = 0; i < 2; i++) _mm_prefetch(reinterpret_cast<const char*>(w) + AHEAD + 64 * i, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const __m256i pairs = load(w + 16 * i), both = _mm256_set1_epi32(static_cast<int>(x[index[j + i]]));
      sums[i] = _mm256_fmadd_ps(second(pairs), second(both), _mm256_fmadd_ps(first(pairs), first(both), sums[i]));
    }
  }
  for (; j < end; j++) {
    const __m256i pairs = load(values + j * 16), both = _mm256_set1_epi32(static_cast<int>(x[index[j]]));
    sums[0] = _mm256_fmadd_ps(second(pairs), second(both), _mm256_fmadd_ps(first(pairs), first(both), sums[0]));
  }
  const int64_t left = at.rows - row * R;
  alignas(16) bf16 out[R];
  _mm_store_si128(reinterpret_cast<__m128i*>(out), narrow8(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]))));
  std::memcpy(y + row * R, out, 2 * (left < R ? left : R));
}

AVX2 void one_f32(const Blocks& at, const float* values, const float* x, float* y, int64_t row) {
  const uint16_t* index = at.index;
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t j = at.start[row];
  const int64_t end = at.start[row + 1];
  for (; j + 4 <= end; j += 4) {
    const float* w = values + j * R;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sums[i] = _mm256_fmadd_ps(_mm256_loadu_ps(w + R * i), _mm256_broadcast_ss(x + index[j + i]), sums[i]);
  }
  for (; j < end; j++) sums[0] = _mm256_fmadd_ps(_mm256_loadu_ps(values + j * R), _mm256_broadcast_ss(x + index[j]), sums[0]);
  const int64_t left = at.rows - row * R;
  alignas(32) float out[R];
  _mm256_store_ps(out, _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  std::memcpy(y + row * R, out, 4 * (left < R ? left : R));
}

template <typename T>
AVX2 void pack(const T* x, uint32_t* words, int64_t columns, int64_t from, int64_t to, int64_t tokens) {
  constexpr int64_t WIDTH = 4 / sizeof(T);
  float* tile = reinterpret_cast<float*>(words);
  const int64_t whole = tokens <= 16 ? 16 : TILE;
  for (int64_t t = 0; t < whole; t += 8)
    for (int64_t k = from * WIDTH; k < to * WIDTH; k += 8) {
      const int64_t left = columns - k, across = to * WIDTH - k < 8 ? to * WIDTH - k : 8;
      __m256 r[8];
      for (int i = 0; i < 8; i++) {
        const T* at = x + (t + i) * columns + k;
        T some[8] = {0};
        if (t + i < tokens && left < 8) std::memcpy(some, at, sizeof(T) * left);
        r[i] = t + i >= tokens ? _mm256_setzero_ps() : eight(left < 8 ? some : at);
      }
      transpose8(r);
      for (int64_t i = 0; i < across; i++) _mm256_store_ps(tile + (k + i) * TILE + t, r[i]);
    }
}

template <typename T, int G>
AVX2 void many(const Blocks& at, const T* values, const uint32_t* words, float* sums, int64_t from, int64_t to) {
  constexpr int64_t WIDTH = 4 / sizeof(T);
  const float* tile = reinterpret_cast<const float*>(words);
  for (int t = 0; t < 16 * G; t += 16)
    for (int half = 0; half < R; half += 4) {
      __m256 sum[4][2];
      float* own = sums + half * TILE + t;
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = _mm256_load_ps(own + r * TILE + 8 * v);
      for (int64_t j = from; j < to; j++) {
        const T* w = values + (j * R + half) * WIDTH;
        if (t == 0 && half == 0) _mm_prefetch(reinterpret_cast<const char*>(w) + AHEAD, _MM_HINT_T0);
        block(w, tile + static_cast<int64_t>(at.index[j]) * WIDTH * TILE + t, sum);
      }
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++)
        for (int v = 0; v < 2; v++) _mm256_store_ps(own + r * TILE + 8 * v, sum[r][v]);
    }
}

AVX2 void finish_bf16(const float* sums, bf16* y, int64_t stride, int64_t tokens, int64_t left) {
  for (int64_t t = 0; t < tokens; t += 8) {
    __m256 r[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_load_ps(sums + i * TILE + t);
    transpose8(r);
    for (int64_t i = 0; i < 8 && t + i < tokens; i++) {
      alignas(16) bf16 out[R];
      _mm_store_si128(reinterpret_cast<__m128i*>(out), narrow8(r[i]));
      std::memcpy(y + (t + i) * stride, out, 2 * (left < R ? left : R));
    }
  }
}

// --- dense rows

namespace {

INLINE AVX2 void step(const float* w, const float* x, __m256 sums[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) sums[i] = _mm256_fmadd_ps(_mm256_loadu_ps(w + 8 * i), _mm256_loadu_ps(x + 8 * i), sums[i]);
}
INLINE AVX2 void step(const bf16* w, const bf16* x, __m256 sums[4]) {
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const __m256i a = load(w + 16 * i), b = load(x + 16 * i);
    sums[2 * i] = _mm256_fmadd_ps(first(a), first(b), sums[2 * i]);
    sums[2 * i + 1] = _mm256_fmadd_ps(second(a), second(b), sums[2 * i + 1]);
  }
}

}  // namespace

template <typename T>
AVX2 void dense(const T* w, const T* x, T* y, int64_t from, int64_t to, int64_t columns, int64_t stride, int64_t tokens) {
  for (int64_t m = from; m < to; m++)
    for (int64_t t = 0; t < tokens; t++) {
      const T *row = w + m * columns, *token = x + t * columns;
      __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
      int64_t k = 0;
      for (; k + 32 <= columns; k += 32) {
        if (sizeof(T) == 2) _mm_prefetch(reinterpret_cast<const char*>(row + k) + AHEAD, _MM_HINT_T0);
        step(row + k, token + k, sums);
      }
      float rest = 0;
      for (; k < columns; k++) rest += wide(row[k]) * wide(token[k]);
      put(y + t * stride + m, rest + total(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]))));
    }
}

AVX2 int32_t dense_i8(const int8_t* row, const uint8_t* x, int64_t columns) {
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  int64_t k = 0;
  for (; k + 64 <= columns; k += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(row + k) + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k + 16 * i)));
      const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k + 16 * i)));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(w, v));
    }
  }
  int32_t rest = 0;
  for (; k < columns; k++) rest += static_cast<int32_t>(row[k]) * x[k];
  return rest + total(_mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3])));
}

// --- a bit a weight: where a byte of bits says that eight packed weights belong; 0x80 makes a zero

namespace {

template <int SIZE>
struct Places {
  alignas(16) uint8_t of[256][8 * SIZE];
};
template <int SIZE>
constexpr Places<SIZE> places_of() {
  Places<SIZE> found{};
  for (int bits = 0; bits < 256; bits++)
    for (int i = 0, next = 0; i < 8; i++) {
      const bool kept = bits >> i & 1;
      for (int byte = 0; byte < SIZE; byte++) found.of[bits][SIZE * i + byte] = static_cast<uint8_t>(kept ? SIZE * next + byte : 0x80);
      next += kept;
    }
  return found;
}
constexpr Places<2> WORDS = places_of<2>();
constexpr Places<1> BYTES = places_of<1>();

INLINE AVX2 __m128i placed(const bf16* values, uint8_t bits) {
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)), _mm_load_si128(reinterpret_cast<const __m128i*>(WORDS.of[bits])));
}
INLINE AVX2 __m128i placed(const int8_t* values, uint8_t bits) {
  return _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values)), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(BYTES.of[bits])));
}

}  // namespace

AVX2_BITS float bitmap_bf16(const uint8_t* bits, const bf16* values, const bf16* x, int64_t columns) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t k = 0;
  for (; k + 32 <= columns; k += 32) {
    const uint8_t* own = bits + k / 8;
    _mm_prefetch(reinterpret_cast<const char*>(values) + AHEAD, _MM_HINT_T0);
    const int64_t one = __builtin_popcount(own[0]), two = one + __builtin_popcount(own[1]), three = two + __builtin_popcount(own[2]);
    const __m256i a = _mm256_set_m128i(placed(values + one, own[1]), placed(values, own[0])), c = load(x + k);
    const __m256i b = _mm256_set_m128i(placed(values + three, own[3]), placed(values + two, own[2])), d = load(x + k + 16);
    sums[0] = _mm256_fmadd_ps(first(a), first(c), sums[0]);
    sums[1] = _mm256_fmadd_ps(second(a), second(c), sums[1]);
    sums[2] = _mm256_fmadd_ps(first(b), first(d), sums[2]);
    sums[3] = _mm256_fmadd_ps(second(b), second(d), sums[3]);
    values += three + __builtin_popcount(own[3]);
  }
  float rest = 0;
  for (; k < columns; k += 8)
    for (unsigned left = bits[k / 8]; left; left &= left - 1) rest += widen(*values++) * widen(x[k + __builtin_ctz(left)]);
  return rest + total(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

AVX2_BITS int32_t bitmap_i8(const uint8_t* bits, const int8_t* values, const uint8_t* x, int64_t columns) {
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  int64_t k = 0;
  for (; k + 32 <= columns; k += 32) {
    const uint8_t* own = bits + k / 8;
    _mm_prefetch(reinterpret_cast<const char*>(values) + AHEAD, _MM_HINT_T0);
    const int64_t one = __builtin_popcount(own[0]), two = one + __builtin_popcount(own[1]), three = two + __builtin_popcount(own[2]);
    const __m256i a = _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(placed(values, own[0]), placed(values + one, own[1])));
    const __m256i b = _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(placed(values + two, own[2]), placed(values + three, own[3])));
    const __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k)));
    const __m256i d = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k + 16)));
    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(a, c));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(b, d));
    values += three + __builtin_popcount(own[3]);
  }
  int32_t rest = 0;
  for (; k < columns; k += 8)
    for (unsigned left = bits[k / 8]; left; left &= left - 1) rest += static_cast<int32_t>(*values++) * x[k + __builtin_ctz(left)];
  return rest + total(_mm256_add_epi32(sums[0], sums[1]));
}

AVX2 float products(int64_t rounds) {
  __m256 sums[12];
  for (auto& s : sums) s = _mm256_setzero_ps();
  __m256 a = _mm256_set1_ps(1), b = a;
  asm("" : "+x"(a), "+x"(b));
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = _mm256_fmadd_ps(a, b, sums[j]);
  for (int j = 1; j < 12; j++) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return total(sums[0]);
}

template void pack(const bf16*, uint32_t*, int64_t, int64_t, int64_t, int64_t);
template void pack(const float*, uint32_t*, int64_t, int64_t, int64_t, int64_t);
template void many<bf16, 1>(const Blocks&, const bf16*, const uint32_t*, float*, int64_t, int64_t);
template void many<bf16, 2>(const Blocks&, const bf16*, const uint32_t*, float*, int64_t, int64_t);
template void many<float, 1>(const Blocks&, const float*, const uint32_t*, float*, int64_t, int64_t);
template void many<float, 2>(const Blocks&, const float*, const uint32_t*, float*, int64_t, int64_t);
template void dense(const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t);
template void dense(const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t);

}  // namespace autoprune::avx2
