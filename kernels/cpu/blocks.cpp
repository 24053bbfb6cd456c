// Matrices in blocks of 8 outputs x 2 inputs (bf16) or 8 x 1 (fp32), for one token and for many: the same storage serves both.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "avx2.h"

namespace autoprune {
namespace {

constexpr int R = 8;          // outputs of a block
constexpr int TILE = avx2::TILE;
constexpr int64_t PANEL = 8192;  // words of a tile that are worked through at a time
constexpr int64_t PANEL_AVX2 = 4096;  // the same in fp32, on processors with smaller caches
constexpr int64_t AHEAD = 4096;  // bytes of weights that are asked for early: the processor's own prefetch ends with a page
constexpr int64_t AHEAD_ONE = 8192, INDEX_AHEAD = 4096;  // the same for one token, which reads faster
constexpr int64_t FEW = 8;    // below it tokens go one by one
constexpr int64_t CHUNK = 8;  // block rows a thread takes at a time

// --- any processor: one token, one block row

template <typename T, int WIDTH>
inline __attribute__((always_inline)) void plain(const Blocks& at, const T* values, const T* x, T* y, int64_t row) {
  float sums[R] = {0};
  for (int32_t j = at.start[row]; j < at.start[row + 1]; j++) {
    const T* w = values + static_cast<int64_t>(j) * R * WIDTH;
    const int64_t k = static_cast<int64_t>(at.index[j]) * WIDTH;
    for (int i = 0; i < WIDTH && k + i < at.columns; i++) {
      const float v = wide(x[k + i]);
      for (int r = 0; r < R; r++) sums[r] += wide(w[r * WIDTH + i]) * v;
    }
  }
  for (int64_t r = 0; r < R && row * R + r < at.rows; r++) put(y + row * R + r, sums[r]);
}

template <typename T, int WIDTH>
void scalar(const Blocks& at, const T* values, const T* x, T* y, int64_t row) { plain<T, WIDTH>(at, values, x, y, row); }
template <typename T, int WIDTH>
AVX512 void avx512(const Blocks& at, const T* values, const T* x, T* y, int64_t row) { plain<T, WIDTH>(at, values, x, y, row); }

// --- one token, bf16: two blocks fill a register

AVX512BF16 inline __m512bh both(const uint32_t* x, uint16_t first, uint16_t second) {
  return (__m512bh)_mm512_mask_set1_epi32(_mm512_set1_epi32(x[first]), 0xff00, x[second]);
}

AVX512BF16 void one_bf16(const Blocks& at, const bf16* values, const bf16* token, bf16* y, int64_t row) {
  const uint32_t* x = reinterpret_cast<const uint32_t*>(token);
  const uint16_t* index = at.index;
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t j = at.start[row];
  const int64_t end = at.start[row + 1];
  for (; j + 8 <= end; j += 8) {
    const bf16* w = values + j * 16;
    _mm_prefetch(reinterpret_cast<const char*>(index + j) + INDEX_AHEAD, _MM_HINT_T0);
    for (int i = 0; i < 4; i++) _mm_prefetch(reinterpret_cast<const char*>(w) + AHEAD_ONE + 64 * i, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_loadu_si512(w + 32 * i), both(x, index[j + 2 * i], index[j + 2 * i + 1]));
  }
  for (; j + 2 <= end; j += 2)
    sums[0] = _mm512_dpbf16_ps(sums[0], (__m512bh)_mm512_loadu_si512(values + j * 16), both(x, index[j], index[j + 1]));
  __m512 all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  __m256 sum = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  if (j < end)
    sum = _mm256_dpbf16_ps(sum, (__m256bh)_mm256_loadu_si256((const __m256i*)(values + j * 16)), (__m256bh)_mm256_set1_epi32(x[index[j]]));
  const int64_t left = at.rows - row * R;
  alignas(16) bf16 out[R];
  _mm_store_si128((__m128i*)out, (__m128i)_mm256_cvtneps_pbh(sum));
  std::memcpy(y + row * R, out, 2 * (left < R ? left : R));
}

// --- many tokens: a tile of them packed as [input (pair), token]

AVX512 inline void transpose16(__m512i r[16]) {  // of 16 x 16 words
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Words [tokens, across] to tile [across, TILE], of inputs from .. to; tokens beyond are zero.
template <typename T>
AVX512 void pack(const T* x, uint32_t* tile, int64_t columns, int64_t from, int64_t to, int64_t tokens) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(x);
  const int64_t across = columns * static_cast<int64_t>(sizeof(T)) / 4;
  for (int64_t t = 0; t < TILE && t < tokens; t += 16)
    for (int64_t k = from; k < to; k += 16) {
      const int64_t wide = to - k < 16 ? to - k : 16;
      const __mmask16 inside = (1u << wide) - 1;
      __m512i r[16];
      for (int i = 0; i < 16; i++)
        r[i] = t + i < tokens ? _mm512_maskz_loadu_epi32(inside, words + (t + i) * across + k) : _mm512_setzero_si512();
      transpose16(r);
      for (int64_t i = 0; i < wide; i++) _mm512_storeu_si512(tile + (k + i) * TILE + t, r[i]);
    }
}

// Eight rows of 16 sums to bf16 at y[token][row .. row + 7].
AVX512BF16 inline void stored(const __m512* sums, bf16* y, int64_t stride, int64_t tokens, int64_t left) {
  __m512i pair[4];
  for (int i = 0; i < 4; i++) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(sums[2 * i]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(sums[2 * i + 1]));
    pair[i] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
  const __m512i a = _mm512_unpacklo_epi32(pair[0], pair[1]), b = _mm512_unpackhi_epi32(pair[0], pair[1]);
  const __m512i c = _mm512_unpacklo_epi32(pair[2], pair[3]), d = _mm512_unpackhi_epi32(pair[2], pair[3]);
  alignas(64) bf16 out[16][R];  // lane l of these holds tokens 4 l + {0, 1, 2, 3}
  const __m512i token[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)};
  for (int i = 0; i < 4; i++) {
    _mm_store_si128((__m128i*)out[i], _mm512_extracti32x4_epi32(token[i], 0));
    _mm_store_si128((__m128i*)out[4 + i], _mm512_extracti32x4_epi32(token[i], 1));
    _mm_store_si128((__m128i*)out[8 + i], _mm512_extracti32x4_epi32(token[i], 2));
    _mm_store_si128((__m128i*)out[12 + i], _mm512_extracti32x4_epi32(token[i], 3));
  }
  for (int64_t t = 0; t < tokens && t < 16; t++) std::memcpy(y + t * stride, out[t], 2 * (left < R ? left : R));
}

// The blocks first .. last of a block row times V x 16 tokens of a tile; sums [8][TILE] go on where the last panel left them.
template <int V>
AVX512BF16 void many_bf16(const Blocks& at, const bf16* values, const uint32_t* tile, float* sums, int64_t first, int64_t last) {
  __m512 sum[V][R];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[v][r] = _mm512_load_ps(sums + r * TILE + 16 * v);
  for (int64_t j = first; j < last; j++) {
    const uint32_t* w = reinterpret_cast<const uint32_t*>(values) + j * R;
    const uint32_t* x = tile + static_cast<int64_t>(at.index[j]) * TILE;
    _mm_prefetch(reinterpret_cast<const char*>(w) + AHEAD, _MM_HINT_T0);
    __m512bh token[V];
    for (int v = 0; v < V; v++) token[v] = (__m512bh)_mm512_load_si512(x + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512bh weight = (__m512bh)_mm512_set1_epi32(w[r]);
      for (int v = 0; v < V; v++) sum[v][r] = _mm512_dpbf16_ps(sum[v][r], weight, token[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) _mm512_store_ps(sums + r * TILE + 16 * v, sum[v][r]);
}

template <int V>
AVX512 void many_f32(const Blocks& at, const float* values, const uint32_t* tile, float* sums, int64_t first, int64_t last) {
  __m512 sum[V][R];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[v][r] = _mm512_load_ps(sums + r * TILE + 16 * v);
  for (int64_t j = first; j < last; j++) {
    const float* w = values + j * R;
    const float* x = reinterpret_cast<const float*>(tile) + static_cast<int64_t>(at.index[j]) * TILE;
    _mm_prefetch(reinterpret_cast<const char*>(w) + AHEAD, _MM_HINT_T0);
    __m512 token[V];
    for (int v = 0; v < V; v++) token[v] = _mm512_load_ps(x + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512 weight = _mm512_set1_ps(w[r]);
      for (int v = 0; v < V; v++) sum[v][r] = _mm512_fmadd_ps(weight, token[v], sum[v][r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) _mm512_store_ps(sums + r * TILE + 16 * v, sum[v][r]);
}

// Sums [8][TILE] of a block row to y[token][row * 8 ...].
AVX512BF16 void finish_bf16(const float* sums, bf16* y, int64_t stride, int64_t tokens, int64_t left) {
  for (int64_t t = 0; t < tokens; t += 16) {
    __m512 rows[R];
    for (int r = 0; r < R; r++) rows[r] = _mm512_load_ps(sums + r * TILE + t);
    stored(rows, y + t * stride, stride, tokens - t, left);
  }
}

void finish_f32(const float* sums, float* y, int64_t stride, int64_t tokens, int64_t left) {
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t r = 0; r < R && r < left; r++) y[t * stride + r] = sums[r * TILE + t];
}

template <typename T>
using One = void (*)(const Blocks&, const T*, const T*, T*, int64_t);
template <typename T>
using Many = void (*)(const Blocks&, const T*, const uint32_t*, float*, int64_t, int64_t);
template <typename T>
using Pack = void (*)(const T*, uint32_t*, int64_t, int64_t, int64_t, int64_t);
template <typename T>
using Finish = void (*)(const float*, T*, int64_t, int64_t, int64_t);

template <typename T>
void one_by_one(const Blocks& at, const T* values, const T* x, T* y, int64_t tokens, int threads, One<T> one) {
  const int64_t chunks = (at.count() + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < chunks; c++)
    for (int64_t row = c * CHUNK; row < (c + 1) * CHUNK && row < at.count(); row++)
      for (int64_t t = 0; t < tokens; t++) one(at, values, x + t * at.columns, y + t * at.rows, row);
}

// Where the blocks of each panel of inputs begin, [panels + 1][block rows].
std::vector<int32_t> panel_starts(const Blocks& at, int64_t panels, int64_t size) {
  std::vector<int32_t> found((panels + 1) * at.count());
  for (int64_t row = 0; row < at.count(); row++) {
    const uint16_t *from = at.index + at.start[row], *to = at.index + at.start[row + 1];
    for (int64_t p = 0; p <= panels; p++) {
      const uint16_t* edge = p == 0 ? from : p == panels ? to : std::lower_bound(from, to, static_cast<uint16_t>(p * size));
      found[p * at.count() + row] = static_cast<int32_t>(edge - at.index);
    }
  }
  return found;
}

// Inputs are those of blocks: fp32 values or pairs of bf16, `words` of a tile each. A panel of a tile stays in the
// second-level cache for all block rows.
template <typename T>
struct Tiles {
  const Blocks& at;
  const T* values;
  int threads;
  Pack<T> pack;
  Many<T> half, whole;
  Finish<T> finish;
  int64_t words, size;

  void run(const T* x, T* y, int64_t tokens) const {
    constexpr int64_t WIDTH = 4 / sizeof(T);
    const int64_t across = (at.columns + WIDTH - 1) / WIDTH, panels = (across + size - 1) / size;
    const auto starts = panel_starts(at, panels, size);
    const std::unique_ptr<uint32_t, decltype(&std::free)> tile(aligned<uint32_t>(across * words * TILE), std::free);
    const std::unique_ptr<float, decltype(&std::free)> sums(aligned<float>(at.count() * R * TILE), std::free);
    for (int64_t t = 0; t < tokens; t += TILE) {
      const int64_t here = tokens - t < TILE ? tokens - t : TILE;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
      for (int64_t k = 0; k < across; k += 64) pack(x + t * at.columns, tile.get(), at.columns, k, k + 64 < across ? k + 64 : across, here);
      std::memset(sums.get(), 0, sizeof(float) * at.count() * R * TILE);
      for (int64_t p = 0; p < panels; p++) panel(starts.data() + p * at.count(), tile.get(), sums.get(), here);
      for (int64_t row = 0; row < at.count(); row++)
        finish(sums.get() + row * R * TILE, y + t * at.rows + row * R, at.rows, here, at.rows - row * R);
    }
  }

  void panel(const int32_t* first, const uint32_t* tile, float* sums, int64_t tokens) const {
    const int64_t chunks = (at.count() + CHUNK - 1) / CHUNK;
    const Many<T> many = tokens <= 16 ? half : whole;
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads) if (threads > 1)
    for (int64_t c = 0; c < chunks; c++)
      for (int64_t row = c * CHUNK; row < (c + 1) * CHUNK && row < at.count(); row++)
        many(at, values, tile, sums + row * R * TILE, first[row], first[row + at.count()]);
  }

  template <typename V>
  static V* aligned(int64_t count) {
    void* found = std::aligned_alloc(64, (count * sizeof(V) + 63) / 64 * 64 + 64);
    if (!found) throw std::bad_alloc();
    return static_cast<V*>(found);
  }
};

}  // namespace

void blocks_bf16(const Blocks& at, const bf16* values, const bf16* x, bf16* y, int64_t tokens, int threads, int most) {
  const int use = level() < most ? level() : most;
  const bool even = at.columns % 2 == 0;  // otherwise a token's pairs do not stand on words
  if (use >= 3 && even && tokens >= FEW)
    return Tiles<bf16>{at, values, threads, pack<bf16>, many_bf16<1>, many_bf16<2>, finish_bf16, 1, PANEL}.run(x, y, tokens);
  if (use >= 1 && tokens >= FEW)
    return Tiles<bf16>{at, values, threads, avx2::pack, avx2::many<bf16, 1>, avx2::many<bf16, 2>, avx2::finish_bf16, 2, PANEL_AVX2 / 2}.run(x, y, tokens);
  const One<bf16> ones[] = {scalar<bf16, 2>, avx2::one_bf16, avx2::one_bf16, one_bf16};
  const One<bf16> odd = use >= 2 ? avx512<bf16, 2> : scalar<bf16, 2>;
  one_by_one<bf16>(at, values, x, y, tokens, threads, even ? ones[use] : odd);
}

void blocks_f32(const Blocks& at, const float* values, const float* x, float* y, int64_t tokens, int threads, int most) {
  const int use = level() < most ? level() : most;
  if (use >= 2 && tokens >= FEW)
    return Tiles<float>{at, values, threads, pack<float>, many_f32<1>, many_f32<2>, finish_f32, 1, PANEL}.run(x, y, tokens);
  if (use == 1 && tokens >= FEW)
    return Tiles<float>{at, values, threads, avx2::pack, avx2::many<float, 1>, avx2::many<float, 2>, finish_f32, 1, PANEL_AVX2}.run(x, y, tokens);
  const One<float> ones[] = {scalar<float, 1>, avx2::one_f32, avx512<float, 1>, avx512<float, 1>};
  one_by_one<float>(at, values, x, y, tokens, threads, ones[use]);
}

}  // namespace autoprune
