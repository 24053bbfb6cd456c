// torch operators `autoprune::*` over the kernels; shapes and dtypes are checked here, once for all callers.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "simd.h"

namespace {

using at::Tensor;
using autoprune::bf16;

const bf16* bits(const Tensor& tensor) { return reinterpret_cast<const bf16*>(tensor.const_data_ptr()); }

// x as [tokens, columns], contiguous, of this dtype.
Tensor flat(const Tensor& x, int64_t columns, at::ScalarType dtype) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == columns, "x has ", x.dim() ? x.size(-1) : 0, " columns, the matrix ", columns);
  TORCH_CHECK(x.scalar_type() == dtype, "x is ", x.scalar_type(), ", the matrix ", dtype);
  return x.reshape({-1, columns}).contiguous();
}

Tensor shaped(const Tensor& y, const Tensor& x, int64_t rows) {
  auto sizes = x.sizes().vec();
  sizes.back() = rows;
  return y.view(sizes);
}

Tensor dense_linear(const Tensor& x, const Tensor& weight, int64_t most) {
  const bool narrow = weight.scalar_type() == at::kBFloat16;
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && (narrow || weight.scalar_type() == at::kFloat), "the matrix must be contiguous, bf16 or fp32");
  const Tensor in = flat(x, weight.size(1), weight.scalar_type());
  Tensor out = at::empty({in.size(0), weight.size(0)}, in.options());
  const int threads = at::get_num_threads();
  if (narrow)
    autoprune::dense_bf16(bits(weight), bits(in), reinterpret_cast<bf16*>(out.data_ptr()), weight.size(0), weight.size(1), in.size(0), threads, most);
  else
    autoprune::dense_f32(weight.const_data_ptr<float>(), in.const_data_ptr<float>(), out.data_ptr<float>(), weight.size(0), weight.size(1), in.size(0), threads, most);
  return shaped(out, x, weight.size(0));
}

Tensor block_linear(const Tensor& x, const Tensor& values, const Tensor& index, const Tensor& start, int64_t rows, int64_t columns, int64_t most) {
  TORCH_CHECK(values.is_contiguous() && index.is_contiguous() && start.is_contiguous(), "the packed matrix must be contiguous");
  TORCH_CHECK(index.scalar_type() == at::kUInt16 && start.scalar_type() == at::kInt, "index must be uint16 and start int32");
  TORCH_CHECK(start.numel() == (rows + 7) / 8 + 1, "start must have one entry more than there are block rows");
  const bool narrow = values.scalar_type() == at::kBFloat16;
  TORCH_CHECK(narrow || values.scalar_type() == at::kFloat, "the matrix must be bf16 or fp32");
  TORCH_CHECK(values.dim() == 3 && values.size(1) == 8 && values.size(2) == (narrow ? 2 : 1), "blocks must be 8x2 in bf16, 8x1 in fp32");
  TORCH_CHECK(index.numel() == values.size(0), "index must have one entry a block");
  const Tensor in = flat(x, columns, values.scalar_type());
  Tensor out = at::empty({in.size(0), rows}, in.options());
  const autoprune::Blocks where{start.const_data_ptr<int32_t>(), reinterpret_cast<const uint16_t*>(index.const_data_ptr()), rows, columns};
  const int threads = at::get_num_threads();
  if (narrow)
    autoprune::blocks_bf16(where, bits(values), bits(in), reinterpret_cast<bf16*>(out.data_ptr()), in.size(0), threads, most);
  else
    autoprune::blocks_f32(where, values.const_data_ptr<float>(), in.const_data_ptr<float>(), out.data_ptr<float>(), in.size(0), threads, most);
  return shaped(out, x, rows);
}

Tensor bitmap_linear(const Tensor& x, const Tensor& values, const Tensor& index, const Tensor& start, int64_t rows, int64_t columns, int64_t most) {
  TORCH_CHECK(values.is_contiguous() && index.is_contiguous() && start.is_contiguous(), "the packed matrix must be contiguous");
  TORCH_CHECK(values.scalar_type() == at::kBFloat16 && index.scalar_type() == at::kByte && start.scalar_type() == at::kInt, "values must be bf16, index uint8, start int32");
  TORCH_CHECK(index.numel() == rows * ((columns + 7) / 8) && start.numel() == rows, "index and start do not fit the matrix");
  const Tensor in = flat(x, columns, at::kBFloat16);
  Tensor out = at::empty({in.size(0), rows}, in.options());
  autoprune::bitmap_bf16(start.const_data_ptr<int32_t>(), index.const_data_ptr<uint8_t>(), bits(values), bits(in),
                         reinterpret_cast<bf16*>(out.data_ptr()), rows, columns, in.size(0), at::get_num_threads(), most);
  return shaped(out, x, rows);
}

// Sums of a token in bytes, made into y: W = scale * values, x = q's scale * (q - 128).
template <typename T>
void finish(const int32_t* found, const Tensor& scale, const Tensor& sums, float token, T* y) {
  const float* by = scale.const_data_ptr<float>();
  const int32_t* whole = sums.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < scale.numel(); r++) autoprune::put(y + r, by[r] * token * static_cast<float>(found[r] - 128 * whole[r]));
}

template <typename T, typename Run>
void each_token(const Tensor& in, const Tensor& out, const Tensor& scale, const Tensor& sums, int64_t most, Run run) {
  const int64_t columns = in.size(1), rows = scale.numel();
  std::vector<uint8_t> bytes(columns);
  std::vector<int32_t> found(rows);
  for (int64_t t = 0; t < in.size(0); t++) {
    const float token = autoprune::bytes_of(reinterpret_cast<const T*>(in.const_data_ptr()) + t * columns, bytes.data(), columns, most);
    run(bytes.data(), found.data());
    finish(found.data(), scale, sums, token, reinterpret_cast<T*>(out.data_ptr()) + t * rows);
  }
}

template <typename Run>
Tensor by_bytes(const Tensor& x, const Tensor& scale, const Tensor& sums, int64_t columns, int64_t most, Run run) {
  const bool narrow = x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(narrow || x.scalar_type() == at::kFloat, "x must be bf16 or fp32");
  TORCH_CHECK(scale.is_contiguous() && sums.is_contiguous() && scale.scalar_type() == at::kFloat && sums.scalar_type() == at::kInt && scale.numel() == sums.numel(),
              "scale must be fp32 and sums int32, one entry a row");
  const Tensor in = flat(x, columns, x.scalar_type());
  const Tensor out = at::empty({in.size(0), scale.numel()}, in.options());
  if (narrow)
    each_token<bf16>(in, out, scale, sums, most, run);
  else
    each_token<float>(in, out, scale, sums, most, run);
  return shaped(out, x, scale.numel());
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& sums, int64_t most) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.scalar_type() == at::kChar && weight.size(0) == scale.numel(), "the matrix must be contiguous int8, with a scale a row");
  return by_bytes(x, scale, sums, weight.size(1), most, [&](const uint8_t* token, int32_t* found) {
    autoprune::dense_i8(weight.const_data_ptr<int8_t>(), token, found, weight.size(0), weight.size(1), at::get_num_threads(), most);
  });
}

Tensor bitmap8_linear(const Tensor& x, const Tensor& values, const Tensor& index, const Tensor& start, const Tensor& scale, const Tensor& sums, int64_t rows, int64_t columns, int64_t most) {
  TORCH_CHECK(values.is_contiguous() && index.is_contiguous() && start.is_contiguous(), "the packed matrix must be contiguous");
  TORCH_CHECK(values.scalar_type() == at::kChar && index.scalar_type() == at::kByte && start.scalar_type() == at::kInt, "values must be int8, index uint8, start int32");
  TORCH_CHECK(index.numel() == rows * ((columns + 7) / 8) && start.numel() == rows && scale.numel() == rows, "index, start and scale do not fit the matrix");
  return by_bytes(x, scale, sums, columns, most, [&](const uint8_t* token, int32_t* found) {
    autoprune::bitmap_i8(start.const_data_ptr<int32_t>(), index.const_data_ptr<uint8_t>(), values.const_data_ptr<int8_t>(), token, found, rows, columns, at::get_num_threads(), most);
  });
}

template <typename T>
void attended(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out, double scale, int64_t most) {
  const autoprune::Head<T> first{reinterpret_cast<const T*>(key.const_data_ptr()), reinterpret_cast<const T*>(value.const_data_ptr()), key.stride(2), value.stride(2)};
  const autoprune::Sizes of{query.size(0), query.size(1), key.size(1), key.size(2), query.size(3), key.stride(0), value.stride(0), key.stride(1), value.stride(1)};
  autoprune::attend<T>(reinterpret_cast<const T*>(query.const_data_ptr()), first, reinterpret_cast<T*>(out.data_ptr()), of, scale, at::get_num_threads(), most);
}

Tensor attend_one(const Tensor& query, const Tensor& key, const Tensor& value, double scale, int64_t most) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && key.sizes() == value.sizes() && query.size(2) == 1, "query must be [batch, heads, 1, channels], keys and values [batch, groups, tokens, channels]");
  TORCH_CHECK(query.size(0) == key.size(0) && query.size(3) == key.size(3) && key.size(1) > 0 && query.size(1) % key.size(1) == 0 && key.size(2) > 0, "keys do not fit the query");
  TORCH_CHECK(key.stride(3) == 1 && value.stride(3) == 1, "channels must stand side by side");
  const auto dtype = query.scalar_type();
  TORCH_CHECK((dtype == at::kBFloat16 || dtype == at::kFloat) && key.scalar_type() == dtype && value.scalar_type() == dtype, "all must be bf16, or all fp32");
  const Tensor in = query.contiguous(), out = at::empty({query.size(0), 1, query.size(1), query.size(3)}, query.options());
  if (dtype == at::kBFloat16)
    attended<bf16>(in, key, value, out, scale, most);
  else
    attended<float>(in, key, value, out, scale, most);
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, int64_t most) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, "x must be bf16 or fp32");
  TORCH_CHECK(weight.is_contiguous() && weight.dim() == 1, "the weight must be a contiguous vector");
  TORCH_CHECK(weight.scalar_type() == dtype, "x is ", dtype, ", the weight ", weight.scalar_type());
  const Tensor in = flat(x, weight.numel(), dtype), out = at::empty_like(in);
  if (dtype == at::kBFloat16)
    autoprune::rms_norm(bits(in), bits(weight), reinterpret_cast<bf16*>(out.data_ptr()), in.size(0), in.size(1), eps, at::get_num_threads(), most);
  else
    autoprune::rms_norm(in.const_data_ptr<float>(), weight.const_data_ptr<float>(), out.data_ptr<float>(), in.size(0), in.size(1), eps, at::get_num_threads(), most);
  return out.view(x.sizes());
}

// Moves what whole large pages of a tensor hold onto such; they are read faster. Whether the system did.
bool large_pages(const Tensor& x) {
#ifdef __linux__
  constexpr uintptr_t PAGE = 1 << 21;
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, which older headers do not know
  const uintptr_t at = reinterpret_cast<uintptr_t>(x.const_data_ptr()), end = (at + x.nbytes()) / PAGE * PAGE;
  const uintptr_t from = (at + PAGE - 1) / PAGE * PAGE;
  return x.is_contiguous() && from < end && madvise(reinterpret_cast<void*>(from), end - from, COLLAPSE) == 0;
#else
  return false;
#endif
}

double read_all(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat, "x must be contiguous fp32");
  return autoprune::read_f32(x.const_data_ptr<float>(), x.numel(), at::get_num_threads());
}

}  // namespace

TORCH_LIBRARY(autoprune, library) {
  library.def("dense_linear(Tensor x, Tensor weight, int most=3) -> Tensor");
  library.def("block_linear(Tensor x, Tensor values, Tensor index, Tensor start, int rows, int columns, int most=3) -> Tensor");
  library.def("bitmap_linear(Tensor x, Tensor values, Tensor index, Tensor start, int rows, int columns, int most=3) -> Tensor");
  library.def("int8_linear(Tensor x, Tensor weight, Tensor scale, Tensor sums, int most=3) -> Tensor");
  library.def("bitmap8_linear(Tensor x, Tensor values, Tensor index, Tensor start, Tensor scale, Tensor sums, int rows, int columns, int most=3) -> Tensor");
  library.def("attend_one(Tensor query, Tensor key, Tensor value, float scale, int most=3) -> Tensor");
  library.def("rms_norm(Tensor x, Tensor weight, float eps, int most=3) -> Tensor");
  library.def("read_all(Tensor x) -> float");
  library.def("large_pages(Tensor x) -> bool");
  library.def("products(int rounds, bool narrow) -> int", [](int64_t rounds, bool narrow) { return autoprune::products(rounds, narrow); });
  library.def("team() -> int", [] { return static_cast<int64_t>(autoprune::team(at::get_num_threads())); });
  library.def("cpu_level() -> int", [] { return static_cast<int64_t>(autoprune::level()); });
}

TORCH_LIBRARY_IMPL(autoprune, CPU, library) {
  library.impl("dense_linear", dense_linear);
  library.impl("block_linear", block_linear);
  library.impl("bitmap_linear", bitmap_linear);
  library.impl("int8_linear", int8_linear);
  library.impl("bitmap8_linear", bitmap8_linear);
  library.impl("attend_one", attend_one);
  library.impl("rms_norm", rms_norm);
  library.impl("large_pages", large_pages);
  library.impl("read_all", read_all);
}
