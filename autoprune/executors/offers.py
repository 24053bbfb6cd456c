"""What a worker needs, and what the nodes of a cluster offer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoprune.errors import SettingError

ROUNDING = 1e-9
NAMES = {"CPU": "CPUs", "GPU": "GPUs"}
OWN = ("node:", "memory", "object_store_memory", "accelerator_type:")  # Ray's, which nobody asks for


@dataclass(frozen=True)
class Demand:
    """What Ray sets aside for one worker; `gpus` may be a part of one."""

    cpus: float
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def amounts(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **self.resources}

    def options(self) -> dict[str, Any]:
        """As an actor is given them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.resources)}

    def room(self, node: Mapping[str, float]) -> int:
        """How many workers a node with these resources has room for."""
        fits = [node.get(n, 0.0) / amount + ROUNDING for n, amount in self.amounts.items() if amount > 0]
        return math.floor(min(fits, default=1.0))

    def __str__(self) -> str:
        return said(self.amounts)


def check_demand(workers: int, cpus: float | None, gpus: float, resources: Mapping[str, Any] | None) -> None:
    """Raise SettingError for a number out of range."""
    if workers < 1:
        raise SettingError(f"executor.workers={workers} is out of range; it must be at least 1")
    named = {"cpus": cpus, "gpus": gpus, **{f"resources.{n}": v for n, v in (resources or {}).items()}}
    for name, value in named.items():
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise SettingError(f"executor.{name}={value} is out of range; it must be a number of at least 0")
        if value is not None and value > 1 and value != int(value):
            raise SettingError(f"executor.{name}={value}: above 1 Ray takes whole numbers only")


def check_room(demand: Demand, workers: int, nodes: Sequence[Mapping[str, Any]], where: str) -> int:
    """How many workers there is room for, `workers` at most; SettingError when no node has room for one.

    `nodes` as Ray lists them; those that are lost are left out.
    """
    alive = [n["Resources"] for n in nodes if n["Alive"]]
    room = sum(demand.room(node) for node in alive)
    if not room:
        raise SettingError(
            f"executor.workers: a worker needs {demand}, and no node of {where} has that: {_all(alive)}"
        )
    return min(room, workers)


def whole_node(resources: Mapping[str, float], nodes: Sequence[Mapping[str, Any]], where: str) -> Demand:
    """All that a node with these resources has, so that nothing else runs there; SettingError when none has them."""
    alive = [n["Resources"] for n in nodes if n["Alive"]]
    fit = [node for node in alive if all(node.get(n, 0.0) >= amount for n, amount in resources.items())]
    if not fit:
        raise SettingError(f"latency.on: no node of {where} has {said(resources)}: {_all(alive)}")
    named = {n: a for n, a in fit[0].items() if n not in ("CPU", "GPU") and not n.startswith(OWN)}
    return Demand(fit[0].get("CPU", 0.0), fit[0].get("GPU", 0.0), named)


def _all(nodes: Sequence[Mapping[str, float]]) -> str:
    """`2 nodes with 4 CPUs, 1 node with 8 CPUs and 1 GPUs`."""
    counted: dict[str, int] = {}
    for node in nodes:
        counted[said(node)] = counted.get(said(node), 0) + 1
    return "; ".join(f"{n} node{'s' * (n > 1)} with {text}" for text, n in sorted(counted.items()))


def said(amounts: Mapping[str, float]) -> str:
    """`2 CPUs, 0.5 GPUs, 1 fast`."""
    shown = {n: a for n, a in amounts.items() if not n.startswith(OWN)}
    return ", ".join(f"{a:g} {NAMES.get(n, n)}" for n, a in sorted(shown.items())) or "nothing to work with"
