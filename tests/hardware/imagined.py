"""Plans whose seconds a function tells, without any model: sizes of what is imagined, and its space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoprune.hardware.designs import profiled
from autoprune.hardware.workload import Workload
from autoprune.shape import Shape, full_plan
from autoprune.space import Plan, SublayerPlan
from autoprune.sublayers import SublayerSpace

WORK = Workload(prefill_tokens=8, context=8, decode_steps=2, rounds=5)
SKEW = 0.4  # of the imagined models
OPTIONS = {"kv_groups": (0, 1, 2), "width": (0, 8, 32)}


def space_of(shape: Shape, options: Mapping[str, Any] = OPTIONS, **settings: Any) -> SublayerSpace:
    """All these options in every block, `settings` of attention or FFN besides."""
    own = {
        "attention": ("kv_", "keep_", "group_heads", "q.", "o."),
        "ffn": ("experts", "width", "up.", "down."),
    }
    sublayers = [
        SublayerPlan.of(
            s.kind, **dict(s.settings), **{n: v for n, v in settings.items() if n.startswith(own[s.kind])}
        )
        for s in full_plan(shape).sublayers
    ]
    return profiled(Plan(tuple(sublayers)), options)
