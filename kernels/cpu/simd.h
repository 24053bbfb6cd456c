// What the kernels share: bf16 conversions, and which instruction sets a function is compiled for.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define AVX512BITS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vpopcntdq,avx512bitalg,avx512vbmi,avx512vnni,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define AVX2 __attribute__((target("avx2,fma,f16c")))

namespace autoprune {

using bf16 = uint16_t;

// What this processor runs: 3 AVX512 with bf16, int8 products and bit counts, 2 AVX512, 1 AVX2, 0 anything.
inline int level() {
  static const int found = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
      return 1;
    const bool all = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vpopcntdq") &&
                     __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vbmi") &&
                     __builtin_cpu_supports("avx512vnni");
    return all ? 3 : 2;
  }();
  return found;
}

inline __attribute__((always_inline)) float widen(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// To the nearest, ties to even; a NaN stays one.
inline __attribute__((always_inline)) bf16 narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// The same for both dtypes.
inline __attribute__((always_inline)) float wide(bf16 value) { return widen(value); }
inline __attribute__((always_inline)) float wide(float value) { return value; }
inline __attribute__((always_inline)) void put(bf16* at, float value) { *at = narrow(value); }
inline __attribute__((always_inline)) void put(float* at, float value) { *at = value; }

struct Blocks {  // rows x columns in blocks of 8 outputs; `start` has one entry more than there are block rows
  const int32_t* start;
  const uint16_t* index;
  int64_t rows, columns;
  int64_t count() const { return (rows + 7) / 8; }
};

// y [tokens, rows] = x [tokens, columns] W^T; `most`: the highest level to use.
void dense_bf16(const bf16* w, const bf16* x, bf16* y, int64_t rows, int64_t columns, int64_t tokens, int threads, int most);
void dense_f32(const float* w, const float* x, float* y, int64_t rows, int64_t columns, int64_t tokens, int threads, int most);
void blocks_bf16(const Blocks& at, const bf16* values, const bf16* x, bf16* y, int64_t tokens, int threads, int most);
void blocks_f32(const Blocks& at, const float* values, const float* x, float* y, int64_t tokens, int threads, int most);
void bitmap_bf16(const int32_t* start, const uint8_t* bits, const bf16* values, const bf16* x, bf16* y, int64_t rows,
                 int64_t columns, int64_t tokens, int threads, int most);

template <typename T>
struct Head {  // keys and values of a head; strides are between tokens, channels stand side by side
  const T *keys, *values;
  int64_t key_stride, value_stride;
};
struct Sizes {  // `size`: channels of a head; strides between items of the batch and between groups
  int64_t batch, heads, groups, keys, size, key_batch, value_batch, key_group, value_group;
};
// out [batch, heads, size] = softmax(scale query keys^T) values, for one query [batch, heads, size].
template <typename T>
void attend(const T* query, const Head<T>& first, T* out, const Sizes& of, float scale, int threads, int most);
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, int64_t rows, int64_t size, float eps, int threads, int most);

// int8 products: x in unsigned bytes (a value plus 128), y in whole numbers, of which 128 times a row's sum is left out.
void dense_i8(const int8_t* w, const uint8_t* x, int32_t* y, int64_t rows, int64_t columns, int threads, int most);
void bitmap_i8(const int32_t* start, const uint8_t* bits, const int8_t* values, const uint8_t* x, int32_t* y, int64_t rows,
               int64_t columns, int threads, int most);

// A token in such bytes; its scale.
template <typename T>
float bytes_of(const T* x, uint8_t* q, int64_t size, int most);

// Products and sums on one core as fast as the kernels could go, in fp32 where it multiplies no bf16; how many
// operations that were, 0 on a processor that the kernels have no path for.
int64_t products(int64_t rounds, bool narrow);
// How many threads come where so many are wanted.
int team(int threads);
// The sum of `count` values: every byte is read once.
float read_f32(const float* x, int64_t count, int threads);

}  // namespace autoprune
