// What AVX2 runs: it knows neither bf16 nor masks, so weights are widened in registers. See avx2.cpp.
#pragma once
#include "simd.h"

#define AVX2_BITS __attribute__((target("avx2,fma,f16c,popcnt")))

namespace autoprune::avx2 {

constexpr int TILE = 32;  // tokens of a packed tile

// One block row for one token; the columns of `one_bf16` must be even.
AVX2 void one_bf16(const Blocks& at, const bf16* values, const bf16* x, bf16* y, int64_t row);
AVX2 void one_f32(const Blocks& at, const float* values, const float* x, float* y, int64_t row);

// Tokens [tokens, columns] to a tile [blocks' inputs, TILE] in fp32, of the block inputs from .. to; beyond is zero.
template <typename T>
AVX2 void pack(const T* x, uint32_t* tile, int64_t columns, int64_t from, int64_t to, int64_t tokens);
// The blocks first .. last of a block row times G x 16 tokens; sums [8][TILE] go on where they were.
template <typename T, int G>
AVX2 void many(const Blocks& at, const T* values, const uint32_t* tile, float* sums, int64_t first, int64_t last);
// Sums [8][TILE] of a block row to y[token][row * 8 ...].
AVX2 void finish_bf16(const float* sums, bf16* y, int64_t stride, int64_t tokens, int64_t left);

// Rows from .. to of a dense matrix times some tokens.
template <typename T>
AVX2 void dense(const T* w, const T* x, T* y, int64_t from, int64_t to, int64_t columns, int64_t stride, int64_t tokens);
AVX2 int32_t dense_i8(const int8_t* row, const uint8_t* x, int64_t columns);

// A row with a bit a weight times a token; values must be readable for 64 bytes beyond the row's last.
AVX2_BITS float bitmap_bf16(const uint8_t* bits, const bf16* values, const bf16* x, int64_t columns);
AVX2_BITS int32_t bitmap_i8(const uint8_t* bits, const int8_t* values, const uint8_t* x, int64_t columns);

// Products and sums in fp32 as fast as they go.
AVX2 float products(int64_t rounds);

}  // namespace autoprune::avx2
