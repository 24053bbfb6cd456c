// torch operators `autoprune::*` over the kernels; shapes and dtypes are checked here, once for all callers.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

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

double read_all(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat, "x must be contiguous fp32");
  return autoprune::read_f32(x.const_data_ptr<float>(), x.numel(), at::get_num_threads());
}

}  // namespace

TORCH_LIBRARY(autoprune, library) {
  library.def("dense_linear(Tensor x, Tensor weight, int most=3) -> Tensor");
  library.def("block_linear(Tensor x, Tensor values, Tensor index, Tensor start, int rows, int columns, int most=3) -> Tensor");
  library.def("bitmap_linear(Tensor x, Tensor values, Tensor index, Tensor start, int rows, int columns, int most=3) -> Tensor");
  library.def("read_all(Tensor x) -> float");
  library.def("cpu_level() -> int", [] { return static_cast<int64_t>(autoprune::level()); });
}

TORCH_LIBRARY_IMPL(autoprune, CPU, library) {
  library.impl("dense_linear", dense_linear);
  library.impl("block_linear", block_linear);
  library.impl("bitmap_linear", bitmap_linear);
  library.impl("read_all", read_all);
}
