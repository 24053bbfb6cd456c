"""`autoprune bench targets`: latency targets, found under a constraint and measured end to end.

One run at `constraints={decode: 0.6x}`, one at `{prefill: 0.6x}` and one at `{params: 0.5x}`; `best/` of each is
compared with dense in one interleaved measurement: ratios paired round by round, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from autoprune.api import load, resume, search
from autoprune.bench.table import parser, publish
from autoprune.front import Front
from autoprune.ledger import FILE

TARGETS = (("decode", "0.6x"), ("prefill", "0.6x"), ("params", "0.5x"))


def main(args: Sequence[str]) -> None:
    """Run, measure, print and write the table."""
    options = _parse(args)
    folders = {f"{metric} {bound}": _run(options, metric, bound) for metric, bound in TARGETS}
    table = _table(folders, options)
    publish("targets", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("targets", __doc__)
    found.add_argument("--tokens", type=float, default=1e6, help="tokens of each run")
    found.add_argument("--rounds", type=int, default=31, help="rounds of the measurement")
    found.add_argument("--work", default="results/bench-targets", help="where the runs are kept")
    return found.parse_args(list(args))


def _run(options: argparse.Namespace, metric: str, bound: str) -> Path:
    folder = Path(options.work) / Path(options.model).name / metric
    if (folder / FILE).is_file() and not (folder / "best").is_dir():
        resume(folder)
    if not (folder / "best").is_dir():
        objectives = ("kl", metric)
        search(
            options.model,
            data=options.data,
            objectives=objectives,
            constraints={metric: bound},
            tokens=options.tokens,
            out=folder,
            settings=["quiet=true", "uniform=[0.6,0.5,0.4]"],
        )
    return folder


def _table(folders: dict[str, Path], options: argparse.Namespace) -> str:
    from autoprune.hardware.endtoend import measure_models
    from autoprune.hardware.workload import Workload
    from autoprune.models.load import load_model

    source = load_model(options.model)
    dense = source.model.to(source.dtype)
    models = {"dense": dense} | {name: load(path / "best") for name, path in folders.items()}
    size = _bytes(Path(source.source))
    with torch.inference_mode():
        measured = measure_models(models, Workload(rounds=options.rounds), reference="dense")
    lines = ["| target | test KL | file | prefill | decode |", "|---|---|---|---|---|"]
    for name, path in folders.items():
        of = measured[name]
        lines.append(
            f"| {name} | {_kl(path):.4f} | {_bytes(path / 'best') / size:.3f}x "
            f"| {of.prefill_ratio:.3f}x [{of.prefill_ratio_low:.3f}, {of.prefill_ratio_high:.3f}] "
            f"| {of.decode_ratio:.3f}x [{of.decode_ratio_low:.3f}, {of.decode_ratio_high:.3f}] |"
        )
    base = measured["dense"]
    lines.append(f"\nDense: prefill {base.prefill_ms:.2f} ms, decode {base.decode_ms:.3f} ms a token.")
    return "\n".join(lines)


def _kl(path: Path) -> float:
    from autoprune.export.checkpoint import PLAN_FILE
    from autoprune.space import Plan

    key = Plan.from_json((path / "best" / PLAN_FILE).read_text()).key
    return Front(path).pick(key=key).figures["kl_test"]


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))
