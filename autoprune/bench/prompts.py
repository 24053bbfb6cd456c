"""`autoprune bench prompts`: how long a model takes that drops prompt tokens, reading a prompt and decoding after it.

A Llama with random weights: this is about time, not quality; `autoprune bench prefill` has the quality. `keep` is the
share of its tokens that every block's attention hands on, in per cent. Times are processor time in one interleaved
loop, ratios those of rounds (median, 95 % interval). FLOPs are those of reading the prompt, ranking left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoprune.bench.table import count, parser, publish
from autoprune.errors import SettingError

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured
    from autoprune.models.base import Adapter
    from autoprune.space import Plan

KEEP = (100, 90, 100, 70, 80, 80, 60, 10)


def main(args: Sequence[str]) -> None:
    """Build, measure, print and write the table."""
    import torch

    from autoprune.hardware.endtoend import measure_models
    from autoprune.hardware.workload import Workload
    from autoprune.models import adapter_for
    from autoprune.shape import AnalyticCosts, full_plan
    from autoprune.space import plan_cost

    options = _parse(args)
    adapter = adapter_for(_model(options))
    dense, plan = full_plan(adapter.shape), dropping(adapter, options.keep)
    models = {name: _installed(adapter, p) for name, p in (("dense", dense), ("dropping", plan))}
    workload = Workload(prefill_tokens=options.tokens, context=options.tokens, rounds=options.rounds)
    with torch.inference_mode():
        found = measure_models(models, workload, reference="dense")
    costs = AnalyticCosts(adapter.shape, options.tokens)
    flops = plan_cost(plan, costs)["flops"] / plan_cost(dense, costs)["flops"]
    publish("prompts", __doc__, args, describe(options, found["dense"], found["dropping"], flops), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("prompts", __doc__, model=False)
    for name, value in {"hidden": 768, "ffn": 2048, "tokens": 512, "rounds": 15}.items():
        found.add_argument(f"--{name}", type=count, default=value, help="(%(default)s)")
    found.add_argument("--keep", type=int, nargs="+", default=list(KEEP), help="per cent, one a block")
    options = found.parse_args(list(args))
    if wrong := [keep for keep in options.keep if not 1 <= keep <= 100]:
        raise SettingError(f"--keep {wrong[0]} must be from 1 to 100")
    return options


def dropping(adapter: Adapter, keep: Sequence[int]) -> Plan:
    """The whole model, whose attentions hand on these shares."""
    from autoprune.shape import full_plan
    from autoprune.space import Plan, SublayerPlan

    def cut(sublayer: SublayerPlan, share: int) -> SublayerPlan:
        more = {"keep_prefill": share} if sublayer.kind == "attention" else {}
        return replace(sublayer, settings=tuple(sorted({**dict(sublayer.settings), **more}.items())))

    whole = full_plan(adapter.shape).sublayers
    return Plan(tuple(cut(sublayer, keep[i // 2]) for i, sublayer in enumerate(whole)))


def describe(options: argparse.Namespace, dense: Measured, cut: Measured, flops: float) -> str:
    """Both phases, and the circumstances."""
    lines = [
        "| phase | dense, ms | dropping, ms | ratio | 95 % interval | FLOPs |",
        "|---|---|---|---|---|---|",
    ]
    for metric, share in (("prefill", f"{flops:.2f}x"), ("decode", "")):
        of = {name: getattr(cut, f"{metric}_{name}") for name in ("ms", "ratio", "ratio_low", "ratio_high")}
        lines.append(
            f"| {metric} | {getattr(dense, f'{metric}_ms'):.2f} | {of['ms']:.2f} | {of['ratio']:.2f}x "
            f"| {of['ratio_low']:.2f} to {of['ratio_high']:.2f} | {share} |"
        )
    said = f"{len(options.keep)} blocks, hidden size {options.hidden}, FFN {options.ffn}, "
    said += f"{options.tokens} prompt tokens; keep {' '.join(map(str, options.keep))}; bf16, one thread."
    return "\n".join([*lines, "", said])


def _installed(adapter: Any, plan: Plan) -> Any:
    import torch

    return adapter.install(plan, lambda block, s: adapter.weights(block, s.kind), torch.bfloat16)


def _model(options: argparse.Namespace) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, options.hidden // 64)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        num_hidden_layers=len(options.keep),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=4096,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()
