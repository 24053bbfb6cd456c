"""`autoprune bench kernels`: matrices in the forms that kernels run, against the library's dense products.

Random matrices, one interleaved loop a size, ratios of rounds (median). One token: weights come from memory, not from
the cache (128 MB of copies in turn, at most 64); ours, and what is only read, stand in large pages as they do in a
loaded model. GB/s are the bytes of values and index, `of stream` is their share of what reading alone reaches, the byte
roofline. Many tokens: packing of the activations included; `of peak` is the share of what the processor can multiply
and add at best that the kept weights of 512 tokens reach, the FLOP roofline. `F.linear` is torch's bf16 product
(oneDNN); `best dense` is the faster of it and our own dense kernel, `none, in fp32` the dense product of many tokens by
oneDNN in fp32, conversion of both sides included (what runs where it is faster, see docs/kernels.md). The baseline of
int8 is torch's own dynamically quantised linear map (`quantized::linear_dynamic`, engine x86, fp32 in and out); ours
round each token to 8 bits too.
Correctness is tested elsewhere, here once more by float64. With more threads than one only the first table is made,
each product on one thread and on so many, in turn, by the clock on the wall.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.bench.table import parser, publish
from autoprune.errors import MeasurementError, SettingError
from autoprune.hardware.timing import Samples, interleaved

ONE, SEVERAL = "results/kernels/cpu.md", "results/kernels/threads.md"
SIZES = ("2048x2048", "4096x11008")
GONE = (50, 70, 90)  # per cent
IN_FP32 = "none, in fp32"
TOKENS = (16, 64, 128, 512)
COLD = 128 << 20  # bytes of copies in turn
MOST = 64  # copies
PRODUCTS = 1 << 16  # rounds of the loop that finds the peak
AGREE = 3e-2

Layers = Mapping[str, nn.Module]
Call = Callable[[], Any]


def main(args: Sequence[str]) -> None:
    """Check, measure, print and write the table."""
    from autoprune.bench.precisions import fp32_lines, int8_lines
    from autoprune.bench.threads import threads_lines
    from autoprune.kernels import native

    options = _parse(args)
    if reason := native.missing():
        raise SettingError(f"bench kernels needs the kernels: {reason}")
    torch.set_num_threads(options.threads)
    if options.threads > 1:
        publish("kernels", __doc__, args, "\n".join(threads_lines(options)), options.to or SEVERAL)
        return
    lines = [f"{native.instructions()}; {options.threads} thread(s); torch {torch.__version__}.", ""]
    lines += ["## One token", "", *_one_token(options)]
    lines += [
        "",
        "## Many tokens: time of F.linear over that of 8x2 blocks, and of a dense matrix in fp32",
        "",
    ]
    lines += _many_tokens(options)
    lines += ["", "## One token, int8", "", *int8_lines(options, sizes_of(options.sizes))]
    lines += ["", "## fp32: time of F.linear over that of others", ""]
    lines += fp32_lines(options, sizes_of(options.sizes))
    publish("kernels", __doc__, args, "\n".join(lines), options.to or ONE)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("kernels", __doc__, model=False)
    found.set_defaults(to=None)
    found.add_argument("--sizes", default=",".join(SIZES), help="outputs x inputs (%(default)s)")
    found.add_argument("--rounds", type=int, default=15, help="of each loop (%(default)s)")
    found.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = found.parse_args(list(args))
    if options.threads < 1:
        raise SettingError(f"--threads {options.threads} must be at least 1")
    return options


def sizes_of(text: str) -> list[tuple[int, int]]:
    """`2048x2048,4096x11008` as numbers."""
    try:
        pairs = [tuple(int(n) for n in part.split("x")) for part in text.split(",")]
        if all(len(p) == 2 and min(p) > 0 for p in pairs):
            return [(a, b) for a, b in pairs]
    except ValueError:
        pass
    raise SettingError(f"--sizes {text} must be like 2048x2048,4096x11008")


def matrix(rows: int, columns: int, form: str, gone: int, seed: int = 0) -> Tensor:
    """A random bf16 matrix with so many per cent of its units zero."""
    draw = torch.Generator().manual_seed(seed + gone)
    high, wide = (8, 2) if form == "blocks" else (1, 1)
    kept = torch.rand(-(-rows // high), -(-columns // wide), generator=draw) >= gone / 100
    mask = kept.repeat_interleave(high, 0).repeat_interleave(wide, 1)[:rows, :columns]
    return torch.randn(rows, columns, generator=draw).to(torch.bfloat16) * mask


def sparse(weight: Tensor, form: str) -> nn.Module:
    """The layer of a matrix, checked against float64."""
    from autoprune.kernels.linear import SparseLinear
    from autoprune.kernels.packing import bitmap_of, blocks_of

    rows, columns = weight.shape
    packed = blocks_of(weight) if form == "blocks" else bitmap_of(weight)
    layer: nn.Module = SparseLinear("blocks" if form == "blocks" else "bitmap", packed, rows, columns)
    for tokens in (1, 33):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        exact = x.double() @ weight.double().t()
        far = float(((layer(x).double() - exact).abs() / (1 + exact.abs())).max())
        if not far < AGREE:
            raise MeasurementError(f"{form} {rows}x{columns} with {tokens} tokens is off by {far:.1e}")
    return layer


def _one_token(options: argparse.Namespace) -> list[str]:
    lines = [head("size", "matrix", "us", "GB/s", "of stream", "to F.linear", "to best dense")]
    for rows, columns in sizes_of(options.sizes):
        layers = one_token_layers(rows, columns)
        x = torch.randn(1, columns).to(torch.bfloat16)
        calls = {name: cold(layer, x) for name, layer in layers.items()}
        found = timed({**calls, "stream": reading()}, options)
        lines += _one_lines(f"{rows}x{columns}", layers, found)
    return lines


def one_token_layers(rows: int, columns: int) -> dict[str, nn.Module]:
    """Dense on torch and on our kernel, and sparse in both forms, by what the table calls them."""
    layers = _dense(torch.randn(rows, columns).to(torch.bfloat16))
    layers |= {f"8x2 blocks, {g} % gone": sparse(matrix(rows, columns, "blocks", g), "blocks") for g in GONE}
    layers |= {f"bitmap, {g} % gone": sparse(matrix(rows, columns, "bitmap", g), "bitmap") for g in GONE}
    return layers


def _one_lines(size: str, layers: Layers, found: Mapping[str, Samples]) -> list[str]:
    fastest = min(("F.linear", "ours"), key=lambda name: found[name].median)
    rate = COLD / found["stream"].median
    lines = [f"| {size} | reading alone |  | {rate / 1e9:.1f} | 1 |  |  |"]
    for name, layer in layers.items():
        seconds = found[name].median
        speed = _bytes(layer) / seconds
        lines.append(
            f"| {size} | {name} | {seconds * 1e6:.0f} | {speed / 1e9:.1f} | {speed / rate:.2f} | "
            f"{ratio(found['F.linear'], found[name])} | {ratio(found[fastest], found[name])} |"
        )
    return lines


def _many_tokens(options: argparse.Namespace) -> list[str]:
    from autoprune.kernels.dense import by_fp32, has_onednn

    lines = [head("size", "gone", *(f"{t} tokens" for t in TOKENS), "geometric mean", "smallest", "of peak")]
    for rows, columns in sizes_of(options.sizes):
        packed: dict[str, Any] = {
            f"{g} %": sparse(matrix(rows, columns, "blocks", g), "blocks") for g in GONE
        }
        weight = torch.randn(rows, columns).to(torch.bfloat16)
        wide = partial(by_fp32, weight=weight, bias=None, onednn=has_onednn())
        layers = {IN_FP32: wide} | packed
        ratios: dict[str, list[float]] = {name: [] for name in layers}
        for tokens in TOKENS:
            x = torch.randn(tokens, columns).to(torch.bfloat16)
            calls: dict[str, Call] = {"F.linear": partial(functional.linear, x, weight)}
            calls |= {name: partial(layer, x) for name, layer in layers.items()}
            calls["peak"] = partial(torch.ops.autoprune.products, PRODUCTS, True)
            found = timed(calls, options)
            for name, row in ratios.items():
                row.append(found["F.linear"].over(found[name]).median)
        peak = torch.ops.autoprune.products(PRODUCTS, True) / found["peak"].median
        for name, row in ratios.items():
            kept = packed[name].kept if name in packed else weight.numel()
            share = _share(2 * TOKENS[-1] * kept / found[name].median, peak)
            mean = math.exp(float(np.mean(np.log(row))))
            cells = " | ".join(f"{r:.2f}" for r in row)
            lines.append(f"| {rows}x{columns} | {name} | {cells} | {mean:.2f} | {min(row):.2f} | {share} |")
    return lines


def reading() -> Call:
    """Reads as much as the copies of a layer hold, from large pages where the system gives them."""
    stream = torch.randn(COLD // 4)
    torch.ops.autoprune.large_pages(stream)
    return partial(torch.ops.autoprune.read_all, stream)


def _share(speed: float, peak: float) -> str:
    return f"{speed / peak:.2f}" if peak else ""  # no bf16 instruction here


def _dense(weight: Tensor) -> dict[str, nn.Module]:
    from autoprune.kernels.dense import DenseLinear

    library = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
    library.weight = nn.Parameter(weight, requires_grad=False)
    return {"F.linear": library, "ours": DenseLinear(library)}


def cold(layer: nn.Module, x: Tensor) -> Call:
    """Calls of copies of a layer in turn, so many that their weights are not in the cache."""
    from autoprune.kernels import native

    copies = [layer, *(copy.deepcopy(layer) for _ in range(min(MOST, COLD // max(1, _bytes(layer)))))]
    if type(layer).__module__.startswith("autoprune.kernels"):
        native.settle(copies)  # as in a loaded model
    turn = itertools.cycle(copies)
    return lambda: next(turn)(x)


def _bytes(layer: nn.Module) -> int:
    weight = getattr(layer, "weight", None)
    return weight.numel() * weight.element_size() if weight is not None else int(layer.stored_bytes)  # type: ignore[arg-type]


def timed(calls: Mapping[str, Call], options: argparse.Namespace) -> dict[str, Samples]:
    """All of them in one loop."""
    with torch.inference_mode():
        return interleaved(calls, options.rounds, 0, options.threads)


def ratio(base: Samples, other: Samples) -> str:
    """How many times as long the first takes, round by round."""
    return f"{base.over(other).median:.2f}"


def head(*names: str) -> str:
    """The first two lines of a table."""
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"
