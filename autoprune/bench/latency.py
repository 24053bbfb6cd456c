"""`autoprune bench latency`: predicted against measured latency, on whole models that nothing was fitted to.

For every kind of gene a table of its own: probes, the plans of the correction and the held-out plans run in one
interleaved loop; times are processor time of one thread, in the checkpoint's dtype, masked matrices on the kernels
that an export would run. The busy machine is refused, with exit code 3 and no table. No rank correlation is told of
plans whose times differ by less than a tenth: what ranks them is noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.progress import Progress

if TYPE_CHECKING:
    from autoprune.hardware.fitting import HeldOut
    from autoprune.hardware.table import LatencyTable

ALIKE = 0.1  # spread of measured times below which plans have no ranks

KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "structured": ("docs-llama", ("space=[structured]",)),
    "sparsity": ("docs-llama", ("space=[structured,sparsity]", "space.sparsity.pattern=8x2")),
    "unstructured": ("docs-llama", ("space=[sparsity]",)),
    "window": ("docs-llama", ("space=[structured,kv_cache]",)),
    "accumulated": ("docs-llama", ("space=[kv_cache]", "space.kv_cache.policy=accumulated")),
    "heads": ("docs-llama", ("space=[structured,heads]",)),
    "tokens": ("docs-bert", ("space=[structured,tokens]",)),
    "experts": ("docs-moe", ("space=[structured,experts]",)),
    "prompts": ("docs-llama", ("space=[structured,prefill_tokens]",)),
    "kept-prompts": (
        "docs-llama",
        ("space=[structured,prefill_tokens]", "space.prefill_tokens.returning=false"),
    ),
    "hidden": ("docs-llama", ("hidden=0.75x", "space=[structured]")),
}


def main(args: Sequence[str]) -> None:
    """Measure, print and write the table."""
    from autoprune.run.latency import measured_table
    from autoprune.run.parts import open_parts

    options = _parse(args)
    tables = {}
    with Progress() as progress:
        for kind in options.kinds:
            model, space = KINDS[kind]
            rounds = f"latency.rounds={options.rounds}"
            settings = [f"model={options.model or model}", rounds, *space, *options.settings]
            tables[kind] = measured_table(open_parts(compose(settings), progress), progress, options.plans)
    publish("latency", __doc__, args, describe(tables), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("latency", __doc__, model=False)
    found.add_argument("--model", help="a built-in name or a folder (each kind's own)")
    found.add_argument(
        "settings", nargs="*", metavar="key=value", help="further settings, e.g. latency.batch=4"
    )
    found.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of genes")
    found.add_argument("--plans", type=int, default=16, help="held-out plans of each kind")
    found.add_argument("--rounds", type=int, default=21, help="rounds of the measurement")
    return found.parse_args(list(args))


def describe(tables: Mapping[str, LatencyTable]) -> str:
    """Errors by kind and phase, those of all kinds together, and the circumstances."""
    lines = [
        "| genes | phase | held-out plans | mean error | largest | Spearman | correction | dense (wall clock) |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for kind, table in tables.items():
        for metric, held in sorted(table.error.items(), reverse=True):
            a, b = table.correction[metric]
            lines.append(
                f"| {kind} | {metric} | {_cells(held)} | {a:+.3f} ms + {b:.3f} x sum "
                f"| {table.dense_ms[metric]:.3f} ms ({table.dense_wall_ms[metric]:.3f}) |"
            )
    for metric in ("prefill", "decode"):
        if rows := [t.error[metric] for t in tables.values() if metric in t.error]:
            lines.append(f"| all | {metric} | {_cells(pooled(rows))} (the lowest) | | |")
    return "\n".join([*lines, "", _circumstances(list(tables.values()))])


def pooled(rows: Sequence[HeldOut]) -> HeldOut:
    """Of several tables: all plans, their mean error, the largest, and the lowest rank correlation."""
    from autoprune.hardware.fitting import HeldOut

    plans = sum(row.plans for row in rows)
    mean = sum(row.plans * row.mean for row in rows) / plans
    told = min((row for row in rows if row.spread >= ALIKE), key=lambda row: row.rank, default=rows[0])
    return HeldOut(plans, mean, max(row.largest for row in rows), told.rank, told.spread)


def _cells(held: HeldOut) -> str:
    rank = f"{held.rank:.4f}" if held.spread >= ALIKE else f"times within {held.spread:.0%}"
    return f"{held.plans} | {held.mean:.2%} | {held.largest:.2%} | {rank}"


def _circumstances(tables: Sequence[LatencyTable]) -> str:
    first = tables[0]
    work = first.workload
    kernels = {str(t.fingerprint["kernels"]) for t in tables if "kernels" in t.fingerprint}
    return (
        f"Sentinel accepted: every model was left in peace in at least {min(t.rounds for t in tables)} of "
        f"{work.rounds} rounds. Batch {work.batch}, prefill of {work.prefill_tokens} tokens, decode from "
        f"{work.context}, {first.dtype}, threads {work.threads}. On {first.fingerprint['cpu']}, torch "
        f"{first.fingerprint['torch']}" + (f", kernels: {', '.join(sorted(kernels))}." if kernels else ".")
    )
