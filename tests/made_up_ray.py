"""A made-up Ray that runs everything at once, here: what plans and nodes do to workers is for the test to say."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.evaluation import Failure, Scores, summarise
from autoprune.executors import ray as room
from autoprune.executors.base import Spec
from autoprune.executors.ray import Ray
from autoprune.executors.wire import Asked, Scored
from autoprune.executors.worker import Ready
from autoprune.objective import Fidelity, Proposal, Result, Split
from autoprune.space import Candidate, Plan
from autoprune.study import Job

SPEC = Spec({"threads": 1, "sequences": 2}, {}, "")


class RayError(Exception):
    """Ray's base class."""


class Died(RayError):
    """A worker that is gone."""


class TaskError(RayError):
    """What a worker raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@dataclass(eq=False)
class Call:
    """A reference to what will be run when it is asked for."""

    function: Callable[..., Any]
    values: tuple[Any, ...]


@dataclass(eq=False)
class Handle:
    """A worker."""

    open: Any
    score: Any


@dataclass
class World:
    """A made-up Ray: what plans of each width do to a worker, and what was seen."""

    behave: Callable[[int], None] = lambda width: None
    opening: Callable[..., Any] = lambda *given: Ready(1, "here")
    hired: int = 0
    dismissed: int = 0
    scored: list[tuple[list[int], tuple[int, int]]] = field(default_factory=list)
    slow: bool = False
    eager: bool = False  # the first is ready first
    hung: set[int] = field(default_factory=set)  # widths that never answer, the first `patience` times
    patience: int = 1_000
    micro: int | None = None
    smaller: list[tuple[list[int], int]] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    lost: Exception | None = None  # what a look for the head says

    def hangs(self, call: Call) -> bool:
        if not isinstance(call.values[0], bytes):
            return False
        late = bool({plan.widths()[0][1] for plan in Asked.unpacked(call.values[0]).plans} & self.hung)
        self.patience -= late
        return late and self.patience >= 0

    def put(self, part: bytes) -> int:
        self.stored.append(part)
        return len(self.stored) - 1

    def score(self, lump: bytes) -> bytes:
        asked = Asked.unpacked(lump)
        plans, fidelity, sequences = asked.plans, asked.fidelity, asked.sequences
        self.micro = sequences
        if sequences is not None:
            self.smaller.append(([plan.widths()[0][1] for plan in plans], sequences))
        widths = [plan.widths()[0][1] for plan in plans]
        self.scored.append((widths, fidelity.windows))
        for width in widths:
            self.behave(width)
        outcomes = [self.outcome(width, fidelity) for width in widths]
        return Scored(outcomes, 2 * len(plans), 4 * len(plans), 1.0).packed()

    @staticmethod
    def outcome(width: int, fidelity: Fidelity) -> Scores | Failure:
        if width == 13:
            return Failure(f"NaN from window {fidelity.windows[0]} on")
        values = np.array([width / (w + 3) for w in range(*fidelity.windows)])
        return summarise({"kl": [values], "nll": [values * 2]})

    def hire(self) -> Any:
        self.hired += 1

        def remote(call: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *args: Call(call, args))

        return Handle(open=remote(lambda *given: self.opening(*given)), score=remote(self.score))

    def dismiss(self, worker: Any) -> None:
        self.dismissed += 1

    def workers(self) -> list[Any]:
        return [self.hire(), self.hire()]

    def check(self) -> None:
        if self.lost:
            raise self.lost

    def stop(self) -> None:
        pass


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> World:
    """Instead of Ray, for the executor."""
    made, module = World(), ModuleType("ray")

    def get(reference: Call) -> Any:
        try:
            return reference.function(*reference.values)
        except RayError:
            raise
        except Exception as error:
            raise TaskError(error) from error

    def wait(references: list[Call], num_returns: int, timeout: float | None) -> Any:
        waiting = references[::-1] if made.eager else references
        ready = [] if made.slow else [r for r in waiting if not made.hangs(r)][-1:]  # the last is first
        if not ready and timeout:
            time.sleep(timeout)
        return ready, [r for r in references if r not in ready]

    module.get, module.wait = get, wait  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=TaskError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(room, "find_spec", lambda name: object())
    monkeypatch.setattr(room, "Cluster", lambda *args: made)
    return made


def jobs(widths: Sequence[int], windows: tuple[int, int] = (0, 2)) -> list[Job]:
    fidelity = Fidelity(Split.FITNESS, windows)
    return [Job(Proposal(i, Candidate((w,)), fidelity), Plan.of([(1, w)])) for i, w in enumerate(widths)]


def run(executor: Ray, batch: list[Job]) -> dict[int, Result]:
    executor.submit(batch)
    found = list(executor.results())
    assert len(found) == len(batch)
    return {r.proposal.id: r for r in found}
