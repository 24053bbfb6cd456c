"""`autoprune bench prompts`: how long a model takes that drops prompt tokens, reading a prompt and decoding after it.

A Llama with random weights: this is about time, not quality; `autoprune bench prefill` has the quality. `keep` is the
share of its tokens that every block's attention hands on, in per cent; *returning* and *for good* are both settings of
`space.prefill_tokens.returning`. Times are processor time in one interleaved loop, ratios those of rounds (median, 95 %
interval), all models on the fastest way there is here. FLOPs are those of reading the prompt, ranking left out; KV
bytes those of the cache then.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoprune.bench.table import count, parser, publish
from autoprune.errors import SettingError
from autoprune.space import PREFILL, PROMPT

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured
    from autoprune.models.base import Adapter
    from autoprune.space import Plan

RULES = {"returning": PREFILL, "for good": PROMPT}
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
    dense = full_plan(adapter.shape)
    plans = {"dense": dense} | {name: dropping(adapter, options.keep, rule) for name, rule in RULES.items()}
    models = {name: _installed(adapter, plan) for name, plan in plans.items()}
    workload = Workload(prefill_tokens=options.tokens, context=options.tokens, rounds=options.rounds)
    with torch.inference_mode():
        found = measure_models(models, workload, reference="dense")
    costs = AnalyticCosts(adapter.shape, options.tokens)
    base = plan_cost(dense, costs)
    told = {n: {m: v / base[m] for m, v in plan_cost(plans[n], costs).items() if base[m]} for n in RULES}
    publish("prompts", __doc__, args, describe(options, found, told), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("prompts", __doc__, model=False)
    for name, value in {"hidden": 768, "ffn": 2048, "tokens": 512, "rounds": 15}.items():
        found.add_argument(f"--{name}", type=count, default=value, help="(%(default)s)")
    found.add_argument("--keep", type=int, nargs="+", default=list(KEEP), help="per cent, one a block")
    options = found.parse_args(list(args))
    if wrong := [keep for keep in options.keep if not 1 <= keep <= 100]:
        raise SettingError(f"--keep {wrong[0]} must be from 1 to 100")
    return options


def dropping(adapter: Adapter, keep: Sequence[int], rule: str) -> Plan:
    """The whole model, whose attentions hand on these shares."""
    from autoprune.shape import full_plan
    from autoprune.space import Plan, SublayerPlan

    def cut(sublayer: SublayerPlan, share: int) -> SublayerPlan:
        more = {f"keep_{rule}": share} if sublayer.kind == "attention" else {}
        return replace(sublayer, settings=tuple(sorted({**dict(sublayer.settings), **more}.items())))

    whole = full_plan(adapter.shape).sublayers
    return Plan(tuple(cut(sublayer, keep[i // 2]) for i, sublayer in enumerate(whole)))


def describe(
    options: argparse.Namespace, found: Mapping[str, Measured], told: Mapping[str, Mapping[str, float]]
) -> str:
    """Both rules and phases, and the circumstances."""
    lines = [
        "| dropped tokens | phase | dense, ms | dropping, ms | ratio | 95 % interval | FLOPs | KV bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, costs in told.items():
        for metric in ("prefill", "decode"):
            ms, *ratios = (
                getattr(found[name], f"{metric}_{of}") for of in ("ms", "ratio", "ratio_low", "ratio_high")
            )
            share = f"{costs['flops']:.2f}x" if metric == "prefill" else ""
            lines.append(
                f"| {name} | {metric} | {getattr(found['dense'], f'{metric}_ms'):.2f} | {ms:.2f} | {ratios[0]:.2f}x "
                f"| {ratios[1]:.2f} to {ratios[2]:.2f} | {share} | {costs['kv_bytes']:.2f}x |"
            )
    said = f"{len(options.keep)} blocks, hidden size {options.hidden}, FFN {options.ffn}, "
    said += f"{options.tokens} prompt tokens; keep {' '.join(map(str, options.keep))}; bf16, one thread."
    return "\n".join([*lines, "", said])


def _installed(adapter: Any, plan: Plan) -> Any:
    import torch

    from autoprune.export.running import run_fast

    model = adapter.install(plan, lambda block, s: adapter.weights(block, s.kind), torch.bfloat16)
    run_fast(model, None, {}, threads=1)
    return model


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
