"""Runs that differ only in their seed, and what sets one such family apart from the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.runs import Seen, method

LEFT_OUT = (
    "seed",
    "out",
    "quiet",
    "executor",
    "memory_mb",
    "device_mb",
    "host_mb",
)  # what makes no other family
NAMED = 4  # settings that a label names at most


def family(run: Seen) -> str:
    """All settings of a run but its seed and what cannot change its numbers."""
    kept = {k: v for k, v in run.settings.items() if k not in LEFT_OUT}
    return json.dumps(kept, sort_keys=True, default=str)


def labels(runs: Sequence[Seen]) -> dict[str, str]:
    """Families by what sets them apart: the method, then whatever differs between those of one method."""
    families = {family(run): run.settings for run in runs}
    flat = {key: dict(_flat(settings)) for key, settings in families.items()}
    said = {}
    for key, settings in families.items():
        peers = [flat[k] for k, s in families.items() if method(s) == method(settings)]
        apart = [n for n in flat[key] if len({json.dumps(p.get(n), default=str) for p in peers}) > 1]
        apart = [name for name in apart if name.split(".")[0] not in LEFT_OUT]
        words = [f"{_word(name)}={_short(flat[key][name])}" for name in apart if flat[key][name]][:NAMED]
        said[key] = " ".join([method(settings), *words])
    return said


def _word(name: str) -> str:
    """`search.population` as `population`: what is searched with or bounded is told by the last part."""
    return name.removeprefix("search.").removeprefix("constraints.")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_short, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
