"""`autoprune bench stage`: a stage of 64 plans at 0.6x in one batch, against looping the stock model with masks.

The plans are what evopress breeds from a uniform parent; both ways see the same windows, use the same evaluator, and
must find the same KLs. The stock model runs whole: what enters its output projections is zeroed where units are gone.
Ladders are nested, so that a mask is the same model; refit ones have the same sizes. Both ways take turns, on one
thread; ratios are of rounds, median and range. The shares say where the thread's time of the batch goes: `rest` is
sorting plans, looking up weights and collecting scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.bench.sharing import searcher_of
from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.errors import MeasurementError
from autoprune.evaluation import Batch, Evaluation, Failure
from autoprune.objective import Array, Fidelity, Result, Split, Status
from autoprune.progress import Progress
from autoprune.pruning.ladders import OUTPUT
from autoprune.run.parts import Parts, open_parts
from autoprune.space import KINDS, Plan
from autoprune.supernet import Supernet

PLANS = 64
AGREE = 1e-3  # largest relative difference of a KL: the stock model's linear maps round otherwise


def main(args: Sequence[str]) -> None:
    """Run, check, print and write the table."""
    options = _parse(args)
    words = [f"model={options.model}", f"data={options.data}", "latency.mode=off", "evaluator=[divergence]"]
    with Progress(quiet=True) as progress:
        parts = open_parts(compose([*words, "calibration.ladder=nested"]), progress)
    evaluation = parts.evaluation(parts.evaluators)
    plans, fidelity = stage(parts, evaluation), Fidelity(Split.FITNESS, (0, options.windows))
    stock = Stock(parts, evaluation, fidelity)
    difference = disagreement(stock(plans), batched(evaluation, plans, fidelity))
    wall, thread = measured(
        (partial(batched, evaluation, plans, fidelity), partial(stock, plans)), options.rounds
    )
    lines = [_head("clock", "one batch, s", "stock loop, s", "ratio", "range")]
    lines += [_times("wall", wall), _times("thread", thread)]
    lines += ["", _head("part of the batch", "share"), *_shares(parts, plans, fidelity, options.rounds)]
    lines += ["", _circumstances(parts, evaluation, plans, fidelity, difference)]
    publish("stage", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("stage", __doc__)
    found.add_argument("--windows", type=int, default=4, help="of the stage")
    found.add_argument("--rounds", type=int, default=9, help="of the measurement")
    return found.parse_args(list(args))


def stage(parts: Parts, evaluation: Evaluation) -> list[Plan]:
    """The first children that evopress breeds from the best uniform plan at 0.6x."""
    space = parts.space(None)
    searcher = searcher_of(parts, space, "evopress")
    proposals = searcher.ask(searcher.batch)
    scores = evaluation.evaluate([space.decode(p.candidate) for p in proposals], proposals[0].fidelity)
    pairs = [(p, s) for p, s in zip(proposals, scores, strict=True) if not isinstance(s, Failure)]
    searcher.tell([Result(p, Status.OK, {**space.cost(p.candidate), **s.metrics}) for p, s in pairs])
    return [space.decode(p.candidate) for p in searcher.ask(searcher.batch)][:PLANS]


def batched(evaluation: Evaluation, plans: Sequence[Plan], fidelity: Fidelity) -> Array:
    """KL of every plan, our way."""
    scores = evaluation.evaluate(plans, fidelity)
    return np.array([np.nan if isinstance(s, Failure) else s.metrics["kl"] for s in scores])


class Stock:
    """The stock model looped over plans, with masks in front of its output projections."""

    def __init__(self, parts: Parts, evaluation: Evaluation, fidelity: Fidelity) -> None:
        self._parts, self._evaluator = parts, evaluation.evaluators[0]
        start, stop = fidelity.windows
        rows = evaluation.corpus.windows(fidelity.split)[start:stop]
        ids = torch.from_numpy(rows.astype(np.int64))
        self._batch = Batch(fidelity.split, (start, stop), ids).on(parts.device)
        self._masks: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self, plans: Sequence[Plan]) -> Array:
        """KL of every plan."""
        model, found = self._parts.loaded.model, []
        with self._hooked():
            for plan in plans:
                self._masks = [self._mask(depth, plan) for depth in range(len(plan.sublayers))]
                logits = model(self._batch.ids, use_cache=False).logits
                found.append(float(self._evaluator.score(self._batch, logits)["kl"].mean()))
        return np.array(found)

    def _mask(self, depth: int, plan: Plan) -> Tensor:
        """1 where an input of the sublayer's output projection is kept."""
        sublayer, adapter = plan.sublayers[depth], self._parts.adapter
        units = adapter.units(sublayer.kind)
        kept = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
        mask = torch.zeros(units.count, device=self._parts.device)
        mask[self._parts.ladders.order(depth // 2, sublayer.kind)[:kept]] = 1.0
        return mask.repeat_interleave(units.slices[OUTPUT[sublayer.kind]][1])

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        adapter: Any = self._parts.adapter
        with ExitStack() as stack:
            for number, block in enumerate(self._parts.loaded.model.get_submodule(adapter.layout.blocks)):
                for depth, kind in enumerate(KINDS, 2 * number):
                    paths = adapter.layout.modules(kind).items()
                    path = next(p for p, names in paths if OUTPUT[kind] in names)
                    hook = block.get_submodule(path).register_forward_pre_hook(partial(self._hook, depth))
                    stack.callback(hook.remove)
            yield

    def _hook(self, depth: int, module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0] * self._masks[depth], *given[1:])


def disagreement(stock: Array, ours: Array) -> float:
    """The largest relative difference; raises MeasurementError when it is more than rounding."""
    largest = float(np.abs(ours / stock - 1).max())
    if not largest <= AGREE:
        raise MeasurementError(f"the masked stock model has other KLs than the batch, by up to {largest:.2e}")
    return largest


def measured(ways: Sequence[Callable[[], Any]], rounds: int) -> tuple[Array, Array]:
    """Wall and thread seconds [rounds, ways], the ways in turns."""
    found = np.zeros((2, rounds, len(ways)))
    for at in range(rounds):
        for number, way in enumerate(ways):
            start = np.array([time.perf_counter(), time.thread_time()])
            way()
            found[:, at, number] = np.array([time.perf_counter(), time.thread_time()]) - start
    return found[0], found[1]


class Clock:
    """Sums the thread's time inside some methods of an object, which it stands for."""

    def __init__(self, inner: Any, names: dict[str, Callable[..., str]], sums: dict[str, float]) -> None:
        self._inner, self._names, self._sums = inner, names, sums

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._timed, name, found) if name in self._names else found

    def _timed(self, name: str, method: Callable[..., Any], *given: Any) -> Any:
        start = time.thread_time()
        try:
            return method(*given)
        finally:
            part = self._names[name](*given)
            self._sums[part] = self._sums.get(part, 0.0) + time.thread_time() - start


def _shares(parts: Parts, plans: Sequence[Plan], fidelity: Fidelity, rounds: int) -> list[str]:
    """Where the time of a batch goes, in its order."""
    sums: dict[str, float] = {"embedding": 0.0, "attention": 0.0, "ffn": 0.0, "head": 0.0, "KL": 0.0}
    names = {
        "run_sublayer": lambda block, kind, *_: str(kind),
        "embed": lambda *_: "embedding",
        "head": lambda *_: "head",
    }
    adapter: Any = Clock(parts.adapter, names, sums)
    evaluators: list[Any] = [Clock(e, {"score": lambda *_: "KL"}, sums) for e in parts.evaluators]
    evaluation = parts.evaluation(evaluators, Supernet(adapter, parts.ladders))
    evaluation.evaluate(plans, fidelity)  # teachers are read
    sums |= dict.fromkeys(sums, 0.0)
    start = time.thread_time()
    for _ in range(rounds):
        evaluation.evaluate(plans, fidelity)
    total = time.thread_time() - start
    sums["rest"] = total - sum(sums.values())
    return [f"| {name} | {seconds / total:.1%} |" for name, seconds in sums.items()]


def _times(clock: str, seconds: Array) -> str:
    ratios = seconds[:, 0] / seconds[:, 1]
    ours, theirs = np.median(seconds, axis=0)
    spread = f"{ratios.min():.3f} to {ratios.max():.3f}"
    return f"| {clock} | {ours:.3f} | {theirs:.3f} | {np.median(ratios):.3f} | {spread} |"


def _circumstances(
    parts: Parts, evaluation: Evaluation, plans: Sequence[Plan], fidelity: Fidelity, difference: float
) -> str:
    from autoprune.hardware.fingerprint import environment

    telemetry = evaluation.supernet.telemetry
    runs, naive = telemetry.runs, telemetry.naive_runs
    evaluation.evaluate(plans, fidelity)
    share = (telemetry.runs - runs) / (telemetry.naive_runs - naive)
    params = [parts.adapter.shape.blocks, len(plans), fidelity.count, int(parts.cfg.window)]
    blocks, count, windows, window = params
    return (
        f"{parts.loaded.name}, {blocks} blocks; {count} plans on {windows} windows of {window} tokens. Block runs are "
        f"{share:.3f} of one plan at a time; KLs differ by at most {difference:.1e}. On {environment()['cpu']}."
    )


def _head(*names: str) -> str:
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"
