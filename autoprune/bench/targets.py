"""`autoprune bench targets`: latency targets, found under a constraint and measured end to end.

One run at `constraints={decode: 0.6x}`, one at `{prefill: 0.6x}` and one at `{params: 0.5x}`, or with `--random N` one
at each of N random feasible times; `best/` of each is compared with dense in one interleaved measurement: ratios
paired round by round, with 95 % intervals. All run on what is fastest here, dense too; dense as transformers runs it
stands below. A target is kept where the measured ratio is between -5 % and +2 % of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune.api import load, resume, search
from autoprune.bench.table import parser, publish
from autoprune.bench.work import work_folder
from autoprune.errors import SettingError
from autoprune.front import Front
from autoprune.ledger import FILE, Ledger
from autoprune.models import adapter_for
from autoprune.progress import Progress
from autoprune.run.keeping import ABOVE, BELOW
from autoprune.space import Candidate

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured

TARGETS = (("decode", "0.6x"), ("prefill", "0.6x"), ("params", "0.5x"))
SMALL = ("finalists=12", "front_points=6", "uniform=[]", "selection_windows=16", "test_windows=8")
FASTEST, SLOWEST = (
    1.15,
    0.92,
)  # random targets: from so many times the smallest plan's ratio to this ratio to dense


def main(args: Sequence[str]) -> None:
    """Run, measure, print and write the table."""
    options = _parse(args)
    targets = random_targets(options) if options.random else TARGETS
    folders = {f"{metric} {bound}": _run(options, metric, bound) for metric, bound in targets}
    table = _table(folders, options)
    publish("targets", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("targets", __doc__)
    found.add_argument("--tokens", type=float, default=1e6, help="tokens of each run")
    found.add_argument("--rounds", type=int, default=31, help="rounds of the measurement")
    found.add_argument("--random", type=int, default=0, metavar="N", help="random feasible targets instead")
    found.add_argument("--seed", type=int, default=0, help="of the random targets")
    found.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of every run")
    found.add_argument("--work", default="results/bench-targets", help="where the runs are kept")
    return found.parse_args(list(args))


def random_targets(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Those of an earlier call in the same folder: what is feasible is measured, and a little different every time."""
    file = _folder(options) / f"random-{options.random}-{options.seed}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_drawn(options)))
    return [(str(metric), str(bound)) for metric, bound in json.loads(file.read_text())]


def _folder(options: argparse.Namespace) -> Path:
    return work_folder(options.work, options.model, options.data, options.tokens, options.set)


def _drawn(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Bounds on prefill and decode in turn, evenly drawn between the smallest plan and nearly dense."""
    from autoprune.config import compose
    from autoprune.run.latency import latency_table
    from autoprune.run.parts import open_parts

    with Progress() as progress:
        settings = [f"model={options.model}", f"data={options.data}", *options.set]
        parts = open_parts(compose(settings), progress)
        table = latency_table(parts, Path("none"), progress)
    if table is None:
        raise SettingError("bench targets --random needs predicted latencies; leave out latency.mode=off")
    space, rng = parts.space(table), random.Random(options.seed)
    dense, least = (space.cost(c) for c in (space.dense, Candidate((0,) * len(space.genes))))
    found = []
    for number in range(options.random):
        metric = ("decode", "prefill")[number % 2]
        low = min(FASTEST * least[metric] / dense[metric], SLOWEST)
        found.append((metric, f"{rng.uniform(low, SLOWEST):.3f}x"))
    return found


def _run(options: argparse.Namespace, metric: str, bound: str) -> Path:
    name = f"{metric}-{bound}" if options.random else metric
    folder = _folder(options) / name
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
            settings=["quiet=true", *(SMALL if options.random else ["uniform=[0.6,0.5,0.4]"]), *options.set],
        )
    return folder


def _table(folders: dict[str, Path], options: argparse.Namespace) -> str:
    from autoprune.hardware.endtoend import measure_models
    from autoprune.hardware.workload import Workload
    from autoprune.models.load import load_model

    source = load_model(options.model)
    stock = source.model.to(source.dtype)
    models = {"dense": _fast(stock), "stock": stock}
    models |= {name: load(path / "best") for name, path in folders.items()}
    size = _bytes(Path(source.source))
    with torch.inference_mode():
        measured = measure_models(models, Workload(rounds=options.rounds), reference="dense")
    lines = ["| target | test KL | file | prefill | decode | off | phases |", "|---|---|---|---|---|---|---|"]
    shares = {name: share for name in folders if (share := off(name, measured[name])) is not None}
    for name, path in folders.items():
        of = measured[name]
        lines.append(
            f"| {name} | {_kl(path):.4f} | {_bytes(path / 'best') / size:.3f}x "
            f"| {of.prefill_ratio:.3f}x [{of.prefill_ratio_low:.3f}, {of.prefill_ratio_high:.3f}] "
            f"| {of.decode_ratio:.3f}x [{of.decode_ratio_low:.3f}, {of.decode_ratio_high:.3f}] "
            f"| {f'{shares[name]:+.1%}' if name in shares else ''} | {_phases(path)} |"
        )
    base, kept = measured["dense"], sum(BELOW <= share <= ABOVE for share in shares.values())
    lines.append(f"\nDense: prefill {base.prefill_ms:.2f} ms, decode {base.decode_ms:.3f} ms a token.")
    slow = measured["stock"]
    lines.append(
        f"As transformers runs it: {slow.prefill_ms:.2f} ms ({slow.prefill_ratio:.2f}x), "
        f"{slow.decode_ms:.3f} ms ({slow.decode_ratio:.2f}x)."
    )
    lines.append(
        f"{kept} of {len(shares)} times measured between {BELOW:.0%} and {ABOVE:+.0%} of their target."
    )
    return "\n".join(lines)


def _fast(stock: Any) -> Any:
    """A copy of a dense model on what checkpoints run on when they are loaded."""
    from autoprune.export.running import run_fast

    model = copy.deepcopy(stock)
    run_fast(model, getattr(adapter_for(model), "layout", None), {}, torch.get_num_threads())
    return model


def off(name: str, measured: Measured) -> float | None:
    """How much the measured ratio is above the target `METRIC RATIOx`, as a share of it; None for other costs."""
    metric, _, bound = name.partition(" ")
    ratio = getattr(measured, f"{metric}_ratio", None)
    return None if ratio is None else float(ratio) / float(bound.removesuffix("x")) - 1


def _phases(folder: Path) -> int:
    """How many a run took: more than one where its target was missed at first."""
    return len(Ledger.open(folder / FILE).events("phase"))


def _kl(path: Path) -> float:
    from autoprune.export.checkpoint import PLAN_FILE
    from autoprune.space import Plan

    key = Plan.from_json((path / "best" / PLAN_FILE).read_text()).key
    return Front(path).pick(key=key).figures["kl_test"]


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))
