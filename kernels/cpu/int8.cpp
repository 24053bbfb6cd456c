// int8 matrices, dense and with a bit a weight, times one token in unsigned bytes.
#include "avx2.h"

namespace autoprune {
namespace {

constexpr int64_t ROWS = 32;  // a thread takes so many at a time
constexpr int64_t AHEAD = 16384, BITS_AHEAD = 4096;

inline __attribute__((always_inline)) int32_t plain(const int8_t* row, const uint8_t* x, int64_t columns) {
  int32_t sum = 0;
  for (int64_t k = 0; k < columns; k++) sum += static_cast<int32_t>(row[k]) * x[k];
  return sum;
}
int32_t scalar(const int8_t* row, const uint8_t* x, int64_t columns) { return plain(row, x, columns); }

AVX512BITS int32_t dots(const int8_t* row, const uint8_t* x, int64_t columns) {
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t k = 0;
  for (; k + 256 <= columns; k += 256)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(x + k + 64 * i), _mm512_loadu_si512(row + k + 64 * i));
  for (; k < columns; k += 64) {
    const int64_t left = columns - k;
    const __mmask64 inside = left >= 64 ? ~0ull : (1ull << left) - 1;
    sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_maskz_loadu_epi8(inside, x + k), _mm512_maskz_loadu_epi8(inside, row + k));
  }
  return _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3])));
}

struct Row {
  const uint8_t* bits;
  const int8_t* values;
};

int32_t kept(Row row, const uint8_t* x, int64_t columns) {
  int32_t sum = 0;
  for (int64_t byte = 0; byte * 8 < columns; byte++)
    for (unsigned left = row.bits[byte]; left; left &= left - 1) sum += static_cast<int32_t>(*row.values++) * x[byte * 8 + __builtin_ctz(left)];
  return sum;
}

int32_t avx2_kept(Row row, const uint8_t* x, int64_t columns) { return avx2::bitmap_i8(row.bits, row.values, x, columns); }

// --- a token in bytes: q = round(x / scale) + 128

template <typename T>
inline __attribute__((always_inline)) float plain_bytes(const T* x, uint8_t* q, int64_t size) {
  float top[16] = {0};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16)
    for (int l = 0; l < 16; l++) {
      const float v = wide(x[i + l]), high = v < 0 ? -v : v;
      top[l] = high > top[l] ? high : top[l];
    }
  float most = 0;
  for (; i < size; i++) {
    const float v = wide(x[i]), high = v < 0 ? -v : v;
    most = high > most ? high : most;
  }
  for (float t : top) most = t > most ? t : most;
  const float scale = most / 127.0f, by = most > 0 ? 127.0f / most : 0.0f;
  for (i = 0; i < size; i++) q[i] = static_cast<uint8_t>(static_cast<int32_t>(wide(x[i]) * by + 128.5f));
  return scale;
}
template <typename T>
float scalar_bytes(const T* x, uint8_t* q, int64_t size) { return plain_bytes(x, q, size); }
template <typename T>
AVX2 float avx2_bytes(const T* x, uint8_t* q, int64_t size) { return plain_bytes(x, q, size); }
template <typename T>
AVX512 float avx512_bytes(const T* x, uint8_t* q, int64_t size) { return plain_bytes(x, q, size); }

// How many kept weights stand before each of 64: within its byte of the bits, and in the bytes before.
struct Places {
  alignas(64) uint8_t byte[64], before[64], first[64];
  alignas(64) uint64_t earlier[8];
};
constexpr Places places_of() {
  Places found{};
  for (int i = 0; i < 64; i++) {
    found.byte[i] = i / 8;                // the byte of the bits that lane i is in
    found.before[i] = (1 << i % 8) - 1;   // the bits of that byte before it
    found.first[i] = i % 16 / 8 * 8;      // of a pair of quad words, the byte that has the count
  }
  for (int i = 0; i < 8; i++) found.earlier[i] = i ? (1ull << (8 * i)) - 1 : 0;
  return found;
}
constexpr Places PLACES = places_of();

AVX512BITS inline __attribute__((always_inline)) __m512i placed(uint64_t bits, const int8_t* values) {
  const __m512i word = _mm512_set1_epi64(bits);
  const __m512i mine = _mm512_and_si512(_mm512_shuffle_epi8(word, _mm512_load_si512(PLACES.byte)), _mm512_load_si512(PLACES.before));
  const __m512i earlier = _mm512_popcnt_epi64(_mm512_and_si512(word, _mm512_load_si512(PLACES.earlier)));
  const __m512i at = _mm512_add_epi8(_mm512_popcnt_epi8(mine), _mm512_shuffle_epi8(earlier, _mm512_load_si512(PLACES.first)));
  return _mm512_maskz_permutexvar_epi8(bits, at, _mm512_loadu_si512(values));
}

// `values` must be readable for 64 bytes beyond the row's last.
AVX512BITS int32_t expanded(Row row, const uint8_t* x, int64_t columns) {
  __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  const int8_t* v = row.values;
  int64_t k = 0;
  for (; k + 128 <= columns; k += 128) {
    uint64_t bits[2];
    std::memcpy(bits, row.bits + k / 8, 16);
    _mm_prefetch(reinterpret_cast<const char*>(v) + AHEAD, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(v) + AHEAD + 64, _MM_HINT_T0);
    if (k % 512 == 0) _mm_prefetch(reinterpret_cast<const char*>(row.bits) + k / 8 + BITS_AHEAD, _MM_HINT_T0);
    const int one = __builtin_popcountll(bits[0]);
    sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_loadu_si512(x + k), placed(bits[0], v));
    sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_loadu_si512(x + k + 64), placed(bits[1], v + one));
    v += one + __builtin_popcountll(bits[1]);
  }
  for (; k < columns; k += 64) {
    const int64_t left = columns - k < 64 ? columns - k : 64;
    const __mmask64 inside = left == 64 ? ~0ull : (1ull << left) - 1;
    uint64_t bits = 0;
    std::memcpy(&bits, row.bits + k / 8, (left + 7) / 8);
    sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_maskz_loadu_epi8(inside, x + k), placed(bits, v));
    v += __builtin_popcountll(bits);
  }
  return _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
}

}  // namespace

void dense_i8(const int8_t* w, const uint8_t* x, int32_t* y, int64_t rows, int64_t columns, int threads, int most) {
  using Run = int32_t (*)(const int8_t*, const uint8_t*, int64_t);
  const Run runs[] = {scalar, avx2::dense_i8, avx2::dense_i8, dots};
  const Run run = runs[level() < most ? level() : most];
  const int64_t chunks = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++)
    for (int64_t m = c * ROWS; m < (c + 1) * ROWS && m < rows; m++) y[m] = run(w + m * columns, x, columns);
}

void bitmap_i8(const int32_t* start, const uint8_t* bits, const int8_t* values, const uint8_t* x, int32_t* y, int64_t rows,
               int64_t columns, int threads, int most) {
  const int64_t across = (columns + 7) / 8, chunks = (rows + ROWS - 1) / ROWS;
  const int use = level() < most ? level() : most;
  const auto run = use >= 3 ? expanded : use >= 1 ? avx2_kept : kept;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++)
    for (int64_t m = c * ROWS; m < (c + 1) * ROWS && m < rows; m++) y[m] = run({bits + m * across, values + start[m]}, x, columns);
}

template <typename T>
float bytes_of(const T* x, uint8_t* q, int64_t size, int most) {
  using Run = float (*)(const T*, uint8_t*, int64_t);
  const Run runs[] = {scalar_bytes<T>, avx2_bytes<T>, avx512_bytes<T>, avx512_bytes<T>};
  return runs[level() < most ? level() : most](x, q, size);
}

template float bytes_of(const bf16*, uint8_t*, int64_t, int);
template float bytes_of(const float*, uint8_t*, int64_t, int);

}  // namespace autoprune
