"""The plans that a latency table is measured on: probes that tell options apart, and random ones to check it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from autoprune.shape import Shape
from autoprune.space import Plan

GONE = 0.1  # chance that a sublayer of a random plan is gone, whatever else it keeps
SMALLEST = 0.15  # level of the smallest random plan: what it keeps, between nothing (0) and everything (1)
SPREAD = 0.35  # how far a sublayer of a random plan may be from the plan's level


def probes(
    shape: Shape, kv_options: Sequence[int], ffn_options: Sequence[int], seed: int = 0
) -> dict[str, Plan]:
    """The dense plan, and for every option one that has it in all blocks beside random ones of the other kind.

    A sublayer costs more among others than alone, where all it touches stays in the nearest cache: so none is
    ever measured alone. The zero option is held by every second block.
    """
    rng = Random(seed)
    groups, widths = all_options(shape, kv_options, ffn_options)
    blocks = range(shape.blocks)
    plans = {"dense": [(shape.kv_groups, shape.ffn)] * shape.blocks}
    for option in groups:
        own = [option or (rng.choice(groups[1:]) if block % 2 else 0) for block in blocks]
        plans[f"attention {option}"] = [(g, rng.choice(widths)) for g in own]
    for option in widths:
        own = [option or (rng.choice(widths[1:]) if block % 2 else 0) for block in blocks]
        plans[f"ffn {option}"] = [(rng.choice(groups), w) for w in own]
    return {name: Plan.of(pairs) for name, pairs in plans.items()}


def random_plans(
    shape: Shape, kv_options: Sequence[int], ffn_options: Sequence[int], count: int, seed: int
) -> list[Plan]:
    """Different random plans, from small ones to nearly everything, with unlike blocks and sublayers gone.

    Fewer than `count` where a space is too small to hold so many.
    """
    rng = Random(seed)
    groups, widths = all_options(shape, kv_options, ffn_options)
    plans: dict[str, Plan] = {}
    for index in range(10 * count):
        if len(plans) == count:
            break
        level = SMALLEST + (1 - SMALLEST) * (index % count + 0.5) / count
        pairs = [(_near(level, groups, rng), _near(level, widths, rng)) for _ in range(shape.blocks)]
        plan = Plan.of(pairs)
        plans.setdefault(plan.key, plan)
    return list(plans.values())


def all_options(
    shape: Shape, kv_options: Sequence[int], ffn_options: Sequence[int]
) -> tuple[list[int], list[int]]:
    """KV groups and widths with zero and the full one among them, rising."""
    return sorted({0, *kv_options, shape.kv_groups}), sorted({0, *ffn_options, shape.ffn})


def _near(level: float, options: Sequence[int], rng: Random) -> int:
    if rng.random() < GONE:
        return options[0]
    share = min(max(level + rng.uniform(-SPREAD, SPREAD), 0.0), 1.0)
    return options[round(share * (len(options) - 1))]
