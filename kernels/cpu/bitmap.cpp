// Unstructured bf16 matrix (values row by row, a bit a weight) times one or a few tokens.
#include "avx2.h"

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
float avx2_row(Row row, const bf16* x, int64_t columns) { return avx2::bitmap_bf16(row.bits, row.values, x, columns); }

constexpr int64_t AHEAD = 16384, BITS_AHEAD = 4096;  // bytes of values and of bits that are asked for early

// Which weights of a word's 32 stand before each: lane i of a register of words has the number of kept ones below i.
// Counting is faster here than the processor's own expansion. In every quarter of a register the first four
// words come from `low`, the others from `high`.
struct Below {
  alignas(64) uint32_t low[16], high[16];
};
constexpr Below below_of() {
  Below found{};
  for (int quarter = 0; quarter < 4; quarter++)
    for (int i = 0; i < 4; i++) {
      found.low[4 * quarter + i] = (1u << (8 * quarter + i)) - 1;
      found.high[4 * quarter + i] = (1u << (8 * quarter + 4 + i)) - 1;
    }
  return found;
}
constexpr Below BELOW = below_of();

// 32 weights in their places from the packed ones at `values`; `word` holds their bits in every double word.
AVX512BITS inline __attribute__((always_inline)) __m512bh placed(__m512i word, __mmask32 bits, const bf16* values, __m512i low, __m512i high) {
  const __m512i first = _mm512_popcnt_epi32(_mm512_and_si512(word, low)), second = _mm512_popcnt_epi32(_mm512_and_si512(word, high));
  return (__m512bh)_mm512_maskz_permutexvar_epi16(bits, _mm512_packus_epi32(first, second), _mm512_loadu_si512(values));
}

AVX512BITS inline __attribute__((always_inline)) __m512bh pairs(const bf16* at) { return (__m512bh)_mm512_loadu_si512(at); }

AVX512BITS inline __attribute__((always_inline)) __mmask32 mask_at(const uint8_t* bits) { return _load_mask32(reinterpret_cast<__mmask32*>(const_cast<uint8_t*>(bits))); }

template <int I>
AVX512BITS inline __attribute__((always_inline)) __m512i word_of(__m512i quarter) { return _mm512_shuffle_epi32(quarter, static_cast<_MM_PERM_ENUM>(I * 0x55)); }

// `values` must be readable for 64 bytes beyond the row's last.
AVX512BITS float expanded(Row row, const bf16* x, int64_t columns) {
  const __m512i low = _mm512_load_si512(BELOW.low), high = _mm512_load_si512(BELOW.high);
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  const bf16* v = row.values;
  int64_t k = 0;
  for (; k + 128 <= columns; k += 128) {
    const uint8_t* bits = row.bits + k / 8;
    for (int i = 0; i < 2; i++) _mm_prefetch(reinterpret_cast<const char*>(v) + AHEAD + 64 * i, _MM_HINT_T0);
    if (k % 512 == 0) _mm_prefetch(reinterpret_cast<const char*>(bits) + BITS_AHEAD, _MM_HINT_T0);
    uint64_t half[2];
    std::memcpy(half, bits, 16);
    const int one = __builtin_popcount(static_cast<uint32_t>(half[0])), two = __builtin_popcountll(half[0]);
    const int three = two + __builtin_popcount(static_cast<uint32_t>(half[1]));
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits)));
    sums[0] = _mm512_dpbf16_ps(sums[0], placed(word_of<0>(all), mask_at(bits), v, low, high), pairs(x + k));
    sums[1] = _mm512_dpbf16_ps(sums[1], placed(word_of<1>(all), mask_at(bits + 4), v + one, low, high), pairs(x + k + 32));
    sums[2] = _mm512_dpbf16_ps(sums[2], placed(word_of<2>(all), mask_at(bits + 8), v + two, low, high), pairs(x + k + 64));
    sums[3] = _mm512_dpbf16_ps(sums[3], placed(word_of<3>(all), mask_at(bits + 12), v + three, low, high), pairs(x + k + 96));
    v += two + __builtin_popcountll(half[1]);
  }
  for (; k < columns; k += 32) {
    const int64_t left = columns - k < 32 ? columns - k : 32;
    const __mmask32 inside = left == 32 ? ~0u : (1u << left) - 1;
    uint32_t mask = 0;
    std::memcpy(&mask, row.bits + k / 8, (left + 7) / 8);
    sums[0] = _mm512_dpbf16_ps(sums[0], placed(_mm512_set1_epi32(mask), mask, v, low, high), (__m512bh)_mm512_maskz_loadu_epi16(inside, x + k));
    v += __builtin_popcount(mask);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

}  // namespace

void bitmap_bf16(const int32_t* start, const uint8_t* bits, const bf16* values, const bf16* x, bf16* y, int64_t rows,
                 int64_t columns, int64_t tokens, int threads, int most) {
  const int64_t across = (columns + 7) / 8, chunks = (rows + ROWS - 1) / ROWS;
  const int use = level() < most ? level() : most;
  const auto run = use >= 3 ? expanded : use >= 1 ? avx2_row : scalar;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++)
    for (int64_t m = c * ROWS; m < (c + 1) * ROWS && m < rows; m++)
      for (int64_t t = 0; t < tokens; t++)
        y[t * rows + m] = narrow(run({bits + m * across, values + start[m]}, x + t * columns, columns));
}

}  // namespace autoprune
