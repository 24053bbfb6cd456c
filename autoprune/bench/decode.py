"""`autoprune bench decode`: one token of a Llama whose matrices are block-sparse, against transformers' own bf16 model.

Random weights: this is about time, not quality; `autoprune bench kernels` has the single matrices. `transformers, bf16`
is the stock model: torch's linear maps, its scaled_dot_product_attention, transformers' RMS norms. `as loaded` is what
`autoprune.load` makes of a checkpoint: linear maps, RMS norms and the attention of one token on kernels where these are
faster here; rotary embeddings, activations and the KV cache are transformers' everywhere. The sparse models have 8x2
blocks in every matrix of their blocks, the embedding and the head are dense in all (and in bf16 where the rest is in
int8, tokens rounded to 8 bits too). All in one interleaved loop, one
token after `--context` others in the KV cache, ratios of rounds (median, 95 % interval). `--quality MODEL --data DATA`
times nothing and writes the quality of the same pattern in a trained model, into a table of its own.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from autoprune.bench.kernels import matrix
from autoprune.bench.table import parser, publish
from autoprune.errors import SettingError
from autoprune.hardware.timing import Samples, interleaved

TIMES, QUALITY = "results/kernels/decode.md", "results/kernels/quality.md"
GONE = (50, 70, 90)
STOCK, DENSE = "transformers, bf16", "dense, as loaded"


def main(args: Sequence[str]) -> None:
    """Build, measure, print and write the table."""
    from autoprune.bench.quality import quality_lines
    from autoprune.kernels import native
    from autoprune.kernels.dense import DenseLinear

    options = _parse(args)
    if options.quality:
        publish("decode", __doc__, args, "\n".join(quality_lines(options)), options.to or QUALITY)
        return
    if reason := native.missing():
        raise SettingError(f"bench decode needs the kernels: {reason}")
    torch.set_num_threads(options.threads)
    dense = _model(options)
    models: dict[str, Any] = {STOCK: dense, "dense, own linear maps only": _mapped(dense, DenseLinear)}
    models[DENSE] = _loaded(copy.deepcopy(dense), options)
    models["dense in int8, as loaded"] = _loaded(copy.deepcopy(dense), options, int8=True)
    for gone in GONE:
        sparse = _mapped(dense, _sparse(gone))
        models[f"8x2 blocks, {gone} % gone, own linear maps only"] = copy.deepcopy(sparse)
        models[f"8x2 blocks, {gone} % gone, as loaded"] = _loaded(sparse, options)
    calls = {name: _token(model, options.context) for name, model in models.items()}
    with torch.inference_mode():
        found = interleaved(calls, options.rounds, 0, options.threads)
    lines = [
        f"{native.instructions()}; {options.threads} thread(s); torch {torch.__version__}; hidden size",
        "",
    ]
    lines[0] += (
        f" {options.hidden}, FFN {options.ffn}, {options.blocks} blocks, {options.context} tokens in the cache."
    )
    lines += [
        "| model | ms a token | to transformers' | 95 % interval | to dense as loaded | 95 % interval |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    lines += [_line(name, samples, found[STOCK], found[DENSE]) for name, samples in found.items()]
    publish("decode", __doc__, args, "\n".join(lines), options.to or TIMES)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("decode", __doc__, model=False)
    found.set_defaults(to=None)
    found.add_argument("--quality", metavar="MODEL", help="a trained model: its quality instead of times")
    found.add_argument("--data", default="auto", help="the text of --quality (%(default)s)")
    found.add_argument(
        "--tokens", type=int, default=32768, help="calibration tokens of --quality (%(default)s)"
    )
    found.add_argument("--windows", type=int, default=64, help="test windows of --quality (%(default)s)")
    sizes = {"hidden": 1024, "ffn": 2816, "blocks": 8, "context": 128, "rounds": 15, "threads": 1}
    for name, value in sizes.items():
        found.add_argument(f"--{name}", type=int, default=value, help="(%(default)s)")
    return found.parse_args(list(args))


def _model(options: argparse.Namespace) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        num_hidden_layers=options.blocks,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        vocab_size=4096,
        dtype=torch.bfloat16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).eval()


def _sparse(gone: int) -> Callable[[nn.Linear], nn.Module]:
    from autoprune.kernels.linear import SparseLinear
    from autoprune.kernels.packing import blocks_of

    def change(linear: nn.Linear) -> nn.Module:
        rows, columns = linear.weight.shape
        mask = matrix(rows, columns, "blocks", gone) != 0
        made: nn.Module = SparseLinear("blocks", blocks_of(linear.weight * mask), rows, columns)
        return made

    return change


def _mapped(model: Any, change: Callable[[nn.Linear], nn.Module]) -> Any:
    """A copy whose linear maps inside blocks are changed."""
    made = copy.deepcopy(model)
    for block in made.model.layers:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                owner, _, attribute = name.rpartition(".")
                setattr(block.get_submodule(owner), attribute, change(module))
    return made


def _loaded(model: Any, options: argparse.Namespace, int8: bool = False) -> Any:
    """A model on all the kernels that a loaded checkpoint runs on; `int8`: one that is stored so."""
    from autoprune.export.int8 import rounded_maps
    from autoprune.export.running import run_fast
    from autoprune.models.llama import LlamaAdapter

    maps = rounded_maps(model, LlamaAdapter.layout) if int8 else {}
    run_fast(model, None, {}, options.threads, maps)
    return model


def _token(model: Any, context: int) -> Callable[[], Any]:
    """One more token after a prompt; the cache is cut back afterwards."""
    with torch.inference_mode():
        ids = torch.arange(context + 1)[None] % 4096
        cache = model(ids[:, :-1], use_cache=True).past_key_values

    def call() -> None:
        model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return call


def _line(name: str, samples: Samples, *bases: Samples) -> str:
    cells = []
    for ratios in (base.over(samples) for base in bases):
        low, high = ratios.interval
        cells += [f"{ratios.median:.2f}", f"{low:.2f} to {high:.2f}"]
    return f"| {name} | {samples.median * 1e3:.2f} | {' | '.join(cells)} |"
