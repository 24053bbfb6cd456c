"""What runs in a worker's process: a supernet built from a spec, and the scoring of pieces."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError
from autoprune.executors.base import Spec
from autoprune.executors.shipping import Listed, Parcel, missing, unpacked
from autoprune.executors.versions import difference, versions
from autoprune.executors.wire import Asked, Scored
from autoprune.out_of_memory import evaluate_within
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation


@dataclass(frozen=True)
class Ready:
    """A worker that can score pieces."""

    pid: int
    node: str
    machine: str = ""  # what the last bits of scores depend on, in words


@dataclass(frozen=True)
class Lacks:
    """A worker whose node does not see a file."""

    file: str
    node: str


class Worker:
    """Holds one supernet; made without one, because loading the libraries takes as long as building it."""

    def __init__(self, get: Callable[[Any], bytes] | None = None) -> None:
        import autoprune.run.remote
        from autoprune.cache import default_root

        self._build = autoprune.run.remote.evaluation
        self._get = get or _get
        self._home = default_root()  # of this node
        self._evaluation: Evaluation | None = None

    def open(self, spec: Spec, files: Listed | None = None, parcel: Parcel | None = None) -> Ready | Lacks:
        """Build the supernet; with `files`, only if they are here; with a parcel, from what is in it.

        Raises LedgerError when model, corpus or ladders are not those of the spec, SettingError when the software is
        another version.
        """
        wrong = difference(spec.versions, versions())
        if wrong:
            raise SettingError(
                f"executor=ray: the run has {wrong} on node {platform.node()}; workers need the versions of the run"
            )
        if files is not None and (file := missing(files)):
            return Lacks(file, platform.node())
        if parcel is not None:
            spec = unpacked(spec, parcel, self._home, self._get)
        os.environ["AUTOPRUNE_CACHE"] = spec.cache
        self._evaluation = self._build(spec)
        return Ready(
            os.getpid(), platform.node(), _machine(str(self._evaluation.supernet.adapter.model.device))
        )

    def score(self, lump: bytes) -> bytes:
        """Evaluate some plans on some windows: packed, and so is what came of it."""
        assert self._evaluation is not None, "open() comes first"
        asked = Asked.unpacked(lump)
        telemetry = self._evaluation.supernet.telemetry
        runs, naive, started = telemetry.runs, telemetry.naive_runs, time.thread_time()
        outcomes = evaluate_within(self._evaluation, asked.plans, asked.fidelity, asked.sequences)
        seconds = time.thread_time() - started
        return Scored(outcomes, telemetry.runs - runs, telemetry.naive_runs - naive, seconds).packed()


class Timer(Worker):
    """Measures latencies on a node that it has for itself."""

    def __init__(self, get: Callable[[Any], bytes] | None = None) -> None:
        super().__init__(get)
        import autoprune.run.remote

        self._build: Any = autoprune.run.remote.parts_of

    def table(self) -> str:
        """The latency table of the run's model on this node, as JSON: its fingerprint is this node's."""
        from autoprune.progress import Progress
        from autoprune.run.latency import measured_table

        parts: Any = self._evaluation
        return measured_table(parts, Progress(quiet=True)).to_json()

    def models(self, plans: Mapping[str, Plan], dense: str, stock: bool) -> tuple[dict[str, Any], str]:
        """End-to-end times of models by name, and what device they were measured on."""
        from autoprune.hardware.fingerprint import fingerprint
        from autoprune.progress import Progress
        from autoprune.run.latency import measured_here

        parts: Any = self._evaluation
        here = fingerprint(int(parts.cfg.threads), str(parts.device))
        found = measured_here(parts, plans, dense, Progress(quiet=True), "measuring", stock)
        return found, f"{here.get('gpu') or here['cpu']}, {here['threads']} threads, node {platform.node()}"


def _machine(device: str) -> str:
    from autoprune.hardware.fingerprint import fingerprint

    here = fingerprint(1, device)
    return str(here.get("gpu") or f"{here['cpu']} ({here['capability']})")


def _get(reference: Any) -> bytes:
    import ray

    found: bytes = ray.get(reference)
    return found
