"""`autoprune bench gpu`: every check and every measurement that takes a GPU, in one command.

Needs torch, triton, numpy and transformers, nothing else. Checks first: kernels against float64, the block stream of a
tiny model on the GPU against the stock model, and plans of a small one against their scores on the CPU. Then times:
CUDA graphs of one token (copies of the weights in turn, so that they come from memory), medians of rounds in which all
items take turns; GB/s are the bytes of values and index, `of copy` is their share of what copying reaches. 2:4 sparsity
is torch's own, at the token counts where it may pay.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.bench.kernels import matrix, sizes_of
from autoprune.bench.table import parser, publish
from autoprune.errors import MeasurementError, SettingError

SIZES = "4096x4096,4096x11008"
GONE = (50, 70, 90)
PROMPT = (256, 1024, 4096)  # tokens for 2:4
COLD = 512 << 20
AGREE = 3e-2
STREAM = 1e-4

Call = Callable[[], Any]


def main(args: Sequence[str]) -> None:
    """Check, measure, print and write the table."""
    options = _parse(args)
    device = _device()
    lines = [_machine(device), "", "## Checks", "", "| what | largest error | allowed |", "|---|---|---|"]
    lines += [_checked(*found) for found in (*_kernels(device), _stream(device))]
    lines += _search(device)
    if device.type == "cuda" and not options.checks:
        lines += ["", "## One token", "", *_one_token(options, device)]
        lines += [
            "",
            "## 2:4 by torch, time of the dense product over it",
            "",
            *_two_of_four(options, device),
        ]
    elif device.type != "cuda":
        lines += [
            "",
            "Not run on a GPU: there is none here. Kernels were checked under Triton's interpreter.",
        ]
    publish("gpu", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("gpu", __doc__, model=False)
    found.set_defaults(to="results/kernels/gpu.md")
    found.add_argument("--sizes", default=SIZES, help="outputs x inputs (%(default)s)")
    found.add_argument("--rounds", type=int, default=31, help="of every loop (%(default)s)")
    found.add_argument("--checks", action="store_true", help="no times")
    return found.parse_args(list(args))


def _device() -> torch.device:
    try:
        from autoprune.kernels import gpu
    except ImportError as error:
        raise SettingError("bench gpu needs triton: pip install triton") from error
    found = gpu.available()
    if found is None:
        raise SettingError("bench gpu needs a CUDA device; TRITON_INTERPRET=1 checks the kernels without one")
    return found  # type: ignore[no-any-return]


def _machine(device: torch.device) -> str:
    import triton

    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    return f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton.__version__}."


def _checked(what: str, error: float, allowed: float) -> str:
    if not error <= allowed:
        raise MeasurementError(f"{what} is off by {error:.1e}, allowed {allowed:.0e}: nothing is timed")
    return f"| {what} | {error:.1e} | {allowed:.0e} |"


def _kernels(device: torch.device) -> list[tuple[str, float, float]]:
    """Largest errors relative to what rounding of the result allows."""
    sizes = [(512, 1024), (67, 4100)] if device.type == "cuda" else [(13, 130)]
    found = []
    for form, (rows, columns), gone in itertools.product(("blocks", "bitmap"), sizes, (0, 60)):
        weight = matrix(rows, columns, form, gone)
        layer, error = layer_of(weight, form, device), 0.0
        for tokens in (1, 3):
            x = torch.randn(tokens, columns).to(torch.bfloat16)
            exact = x.double() @ weight.double().t()
            ours = layer._on_gpu(x.to(device)).cpu().double()
            error = max(error, float(((ours - exact).abs() / (1 + exact.abs())).max()))
        found.append((f"{form} {rows}x{columns}, {gone} % gone", error, AGREE))
    return found


def layer_of(weight: Tensor, form: str, device: torch.device) -> Any:
    """The packed layer of a matrix."""
    from autoprune.kernels.linear import SparseLinear
    from autoprune.kernels.packing import bitmap_of, blocks_of

    packed = blocks_of(weight) if form == "blocks" else bitmap_of(weight)
    return SparseLinear("blocks" if form == "blocks" else "bitmap", packed, *weight.shape).to(device)


def _stream(device: torch.device) -> tuple[str, float, float]:
    """The block stream of a tiny fp32 Llama on the device against the stock model there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from autoprune.models.llama import LlamaAdapter
    from autoprune.space import KINDS

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "vocab_size": 128,
    }
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    model = model.to(device).eval()
    adapter = LlamaAdapter(model)
    ids = torch.arange(48, device=device).view(2, 24)
    with torch.inference_mode():
        stock, state = model(ids, use_cache=False).logits, adapter.embed(ids)
        for block, kind in itertools.product(range(2), KINDS):
            state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
        error = float((adapter.head(state) - stock).abs().max() / stock.abs().max().clamp_min(1.0))
    return "block stream, fp32", error, STREAM


def _search(device: torch.device) -> list[str]:
    """Plans scored on the GPU and on the CPU; without a GPU that they were not."""
    if device.type != "cuda":
        return ["", "Plans were not scored on a GPU: there is none here."]
    from autoprune.bench.gpu_search import search_checks

    checks, rates = search_checks(device)
    return [*(_checked(*found) for found in checks), "", "## Scoring plans", "", *rates]


def _one_token(options: argparse.Namespace, device: torch.device) -> list[str]:
    head = ("size", "matrix", "us", "GB/s", "of copy", "to cuBLAS bf16", "byte roofline")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for rows, columns in sizes_of(options.sizes):
        dense = nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16, device=device)
        layers: dict[str, Any] = {"cuBLAS": dense}
        for form, gone in itertools.product(("blocks", "bitmap"), GONE):
            layers[f"{form}, {gone} % gone"] = layer_of(matrix(rows, columns, form, gone), form, device)
        x = torch.randn(1, columns, device=device, dtype=torch.bfloat16)
        found = timed({name: _graph(layer, x) for name, layer in layers.items()}, options.rounds)
        rate, base = _copy_rate(device, options.rounds), _bytes(dense)
        lines.append(f"| {rows}x{columns} | copying |  | {rate / 1e9:.0f} | 1 |  |  |")
        for name, layer in layers.items():
            speed = _bytes(layer) / found[name]
            lines.append(
                f"| {rows}x{columns} | {name} | {found[name] * 1e6:.1f} | {speed / 1e9:.0f} | {speed / rate:.2f} | "
                f"{found['cuBLAS'] / found[name]:.2f} | {base / _bytes(layer):.2f} |"
            )
    return lines


def _two_of_four(options: argparse.Namespace, device: torch.device) -> list[str]:
    lines = [f"| size | {' | '.join(f'{t} tokens' for t in PROMPT)} |", "|---" * (1 + len(PROMPT)) + "|"]
    for rows, columns in sizes_of(options.sizes):
        weight = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
        keep = torch.tensor([True, True, False, False], device=device).repeat(rows, columns // 4)
        try:
            sparse = torch.sparse.to_sparse_semi_structured(weight * keep)
            cells = [_ratio(weight, sparse, tokens, options.rounds) for tokens in PROMPT]
        except (RuntimeError, NotImplementedError) as error:
            cells = [f"refused: {str(error).splitlines()[0][:60]}"] + [""] * (len(PROMPT) - 1)
        lines.append(f"| {rows}x{columns} | {' | '.join(cells)} |")
    return lines


def _ratio(weight: Tensor, sparse: Tensor, tokens: int, rounds: int) -> str:
    x = torch.randn(tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)
    ways: dict[str, Call] = {
        "dense": lambda: functional.linear(x, weight),
        "2:4": lambda: functional.linear(x, sparse),
    }
    found = timed(ways, rounds)
    return f"{found['dense'] / found['2:4']:.2f}"


def _graph(layer: Any, x: Tensor) -> Call:
    """Replays of one token through copies of a layer in turn, one after another."""
    import copy

    count = max(1, min(64, COLD // _bytes(layer)))
    copies = [layer, *(copy.deepcopy(layer) for _ in range(count - 1))]
    with torch.inference_mode():
        for one in copies:
            one(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for one in copies:
                one(x)

    def replay() -> int:
        graph.replay()
        return len(copies)

    return replay


def timed(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of every call (of each of the calls that it says it made), in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            made = call()
            end.record()
            torch.cuda.synchronize()
            if number >= 2:
                found[name].append(start.elapsed_time(end) / 1e3 / (made if isinstance(made, int) else 1))
    return {name: float(np.median(row)) for name, row in found.items()}


def _copy_rate(device: torch.device, rounds: int) -> float:
    """Bytes read a second while copying 512 MB: half of what moves."""
    source = torch.empty(COLD, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COLD / timed({"copy": lambda: target.copy_(source)}, rounds)["copy"]


def _bytes(layer: Any) -> int:
    weight = getattr(layer, "weight", None)
    return int(layer.stored_bytes) if weight is None else weight.numel() * weight.element_size()
