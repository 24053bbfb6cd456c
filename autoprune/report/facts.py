"""What a report says about the run beside its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunFacts:
    """The circumstances of a run.

    `latency_error` maps a phase to the (mean, largest) relative error of the predicted latency, as fractions;
    `block_runs_naive` is what the same evaluations would have taken without shared prefixes; `splits` maps a split
    to what was used of it, e.g. "64 windows of 256 tokens".
    """

    model: str
    data: str
    data_digest: str
    method: str
    seed: int
    tokens_search: int
    tokens_setup: int
    tokens_final: int
    evaluations: int
    failed: int
    wall_seconds: float
    block_runs: int
    block_runs_naive: int
    machine: str
    command: str
    finished: bool
    latency_error: Mapping[str, tuple[float, float]] | None = None
    notes: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
