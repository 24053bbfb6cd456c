"""`autoprune bench hidden`: a narrower residual stream against fewer KV groups and FFN columns at equal parameters.

`uniform` keeps the hidden width and the best on *selection* of the uniform plans of that size; `hidden` keeps all units
of a rotated and cut model, no larger; the other columns cut both: the stream to a share, units uniformly for the rest.
KL is of *test* windows, to the dense model. Nothing is searched.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.evaluation import Evaluation, Failure
from autoprune.objective import Split
from autoprune.progress import Progress
from autoprune.run.parts import Parts, held_out, open_parts
from autoprune.space import Candidate, Plan, Space, dense_costs
from autoprune.uniform import uniform_candidates


@dataclass(frozen=True)
class Row:
    """A plan's figures: test KL, and shares of the model as given."""

    kl: float
    params: float
    total: float

    def cell(self) -> str:
        """KL, block parameters, all parameters."""
        return f"{self.kl:.4f} ({self.params:.3f}x, {self.total:.3f}x)"


def main(args: Sequence[str]) -> None:
    """Measure, print and write the table."""
    options = _parse(args)
    names = ["uniform", "hidden", *(f"hidden={share}, then uniform" for share in options.shares)]
    lines = [f"| bound | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    opened = [_opened(options, share) for share in (None, *options.shares)]
    for ratio in options.ratios:
        rows = [_uniform(parts, ratio) for parts in opened]
        alone = _opened(options, f"{ratio:g}x", ladders=False)
        cells = [rows[0], _row(alone, alone.space(None), alone.space(None).dense), *rows[1:]]
        lines.append(f"| {ratio:g}x | {' | '.join('–' if c is None else c.cell() for c in cells)} |")
        print(lines[-1], flush=True)
    note = "In brackets: block parameters and all parameters, to the model as given (embedding and head are untied).\n"
    publish("hidden", f"{__doc__}\n{note}", args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("hidden", __doc__)
    found.add_argument(
        "--ratios", nargs="+", type=float, default=[0.9, 0.8, 0.6], help="block parameters to dense"
    )
    found.add_argument("--shares", nargs="*", default=["0.95x"], help="hidden widths beside uniform plans")
    found.add_argument("--tokens", type=int, default=32_768, help="calibration tokens")
    return found.parse_args(list(args))


def _opened(options: argparse.Namespace, share: str | None, ladders: bool = True) -> Parts:
    """Without `ladders` they are only there: nothing is cut by them."""
    settings = [f"model={options.model}", f"data={options.data}", "quiet=true", "latency.mode=off"]
    settings += [f"calibration.tokens={options.tokens}", *([] if share is None else [f"hidden={share}"])]
    settings += [] if ladders else ["calibration.ladder=nested", "calibration.criterion=magnitude"]
    return open_parts(compose(settings), Progress(quiet=True))


def _uniform(parts: Parts, ratio: float) -> Row | None:
    """The best on *selection* among the uniform plans of that size; None where the bound is above all of them."""
    space = parts.space(None)
    whole = dense_costs(space)["params"]
    if ratio * whole > space.cost(space.dense)["params"]:
        return None
    found = uniform_candidates(space, ratio, "params")
    plans = [space.decode(c) for c in found]
    outcomes = parts.evaluation(parts.evaluators).evaluate(
        plans, held_out(parts.cfg, parts.corpus, Split.SELECTION)
    )
    kls = [np.inf if isinstance(o, Failure) else o.metrics["kl"] for o in outcomes]
    return _row(parts, space, found[int(np.argmin(kls))])


def _row(parts: Parts, space: Space, candidate: Candidate) -> Row:
    evaluation: Evaluation = parts.evaluation(parts.evaluators)
    plan: Plan = space.decode(candidate)
    (outcome,) = evaluation.evaluate([plan], held_out(parts.cfg, parts.corpus, Split.TEST))
    assert not isinstance(outcome, Failure), outcome
    cost, whole = space.cost(candidate), dense_costs(space)
    shares = (cost[name] / whole[name] for name in ("params", "params_total"))
    return Row(outcome.metrics["kl"], *shares)
