"""Where a recovery stands, on disk: safetensors only, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "state.safetensors"


@dataclass
class State:
    """After `step` steps: weights and the optimiser's moments, and the best weights of the checks so far.

    The order of the windows needs no state: seed and step decide it. `checks` holds (step, selection KL).
    """

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)  # moments, fp32
    second: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)  # in the checkpoint's dtype
    checks: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best_check(self) -> tuple[int, float]:
        """Step and selection KL of the best weights; the earlier of equals."""
        return min(self.checks, key=lambda check: (check[1], check[0]))


PARTS = ("weights", "first", "second", "best")


def save(state: State, folder: Path, identity: str) -> None:
    """Write it into `folder`; what was there stays until the new file is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}/{n}": t.detach().cpu().contiguous()
        for part in PARTS
        for n, t in getattr(state, part).items()
    }
    facts = {"identity": identity, "step": str(state.step), "checks": json.dumps(state.checks)}
    partial = folder / f"{FILE}.partial"
    save_file(tensors, partial, metadata=facts)
    os.replace(partial, folder / FILE)


def load(folder: Path, identity: str) -> State | None:
    """The state of this very recovery; None when there is none, or it is another's or not readable."""
    try:
        with safe_open(folder / FILE, framework="pt") as opened:
            facts: Mapping[str, str] = opened.metadata() or {}
            if facts.get("identity") != identity:
                return None
            state = State(
                int(facts["step"]), checks=[(int(s), float(k)) for s, k in json.loads(facts["checks"])]
            )
            for key in opened.keys():  # noqa: SIM118
                part, _, name = key.partition("/")
                getattr(state, part)[name] = opened.get_tensor(key)
            return state
    except (OSError, SafetensorError, ValueError, KeyError):
        return None  # a recovery is short: it starts over
