"""The plans that a latency table is measured on: probes that tell options apart, and random ones to check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from autoprune.hardware.terms import EXPERTS, SIZES, Options
from autoprune.space import Candidate, OptionGene, Plan
from autoprune.sublayers import SublayerSpace

GONE = 0.1  # chance that a sublayer of a random plan is gone, whatever else it keeps
SMALLEST = 0.15  # level of the smallest random plan: what it keeps, between nothing (0) and everything (1)
SPREAD = (
    0.35  # how far a sublayer of a random plan may be from the plan's level, and a setting's level from it
)
STRAY = 0.3  # chance that a block of a probe does not hold the probe's option
PER_PART = 1.5  # probes for every number that is fitted
FEWEST = 16  # probes


def profiled(full: Plan, options: Options) -> SublayerSpace:
    """Every setting of a plan as a gene with all its options; sizes have zero and the full one among theirs."""
    genes = []
    for at, sublayer in enumerate(full.sublayers):
        for name, most in sublayer.settings:
            own = set(options.get(name, ()))
            if name in (*SIZES.values(), EXPERTS[0]):
                own |= {0, int(most)}
            if len(own) > 1:
                genes.append(OptionGene(at // 2, sublayer.kind, name, tuple(sorted(own))))
    return SublayerSpace(tuple(genes), full, ())


def probes(space: SublayerSpace, parts: int, seed: int = 0) -> dict[str, Plan]:
    """The dense plan, and for every part that is fitted some that hold one option of each setting in most blocks.

    Every setting goes through its options equally often, in an order of its own. A sublayer costs more among others
    than alone, where all it touches stays in the nearest cache: so none is ever measured alone. The zero option is
    held by every second block.
    """
    rng, found = Random(seed), {"dense": space.decode(space.dense)}
    settings = _settings(space)
    longest = max(map(len, settings.values()), default=0)
    count = max(FEWEST, round(PER_PART * parts), 2 * longest)
    leading = {name: _balanced(options, count, rng) for name, options in settings.items()}
    for number in range(count):
        held = {name: row[number] for name, row in leading.items()}
        found[f"probe {number}"] = space.decode(Candidate(tuple(_held(g, held, rng) for g in _genes(space))))
    return found


def random_plans(space: SublayerSpace, count: int, seed: int) -> list[Plan]:
    """Different random plans, from small ones to nearly everything, with unlike blocks and sublayers gone.

    Fewer than `count` where a space is too small to hold so many.
    """
    rng = Random(seed)
    plans: dict[str, Plan] = {}
    for index in range(10 * count):
        if len(plans) == count:
            break
        level = SMALLEST + (1 - SMALLEST) * (index % count + 0.5) / count
        levels = {name: _share(level, rng) for name in _settings(space)}
        values = tuple(_near(levels[_name(g)], g.options, rng) for g in _genes(space))
        plan = space.decode(Candidate(values))
        plans.setdefault(plan.key, plan)
    return list(plans.values())


def _settings(space: SublayerSpace) -> Mapping[tuple[str, str], tuple[int, ...]]:
    """The options of each setting of each kind of sublayer, those of all blocks together."""
    found: dict[tuple[str, str], set[int]] = {}
    for gene in _genes(space):
        found.setdefault(_name(gene), set()).update(gene.options)
    return {name: tuple(sorted(options)) for name, options in found.items()}


def _name(gene: OptionGene) -> tuple[str, str]:
    return gene.kind, gene.setting


def _genes(space: SublayerSpace) -> list[OptionGene]:
    return [gene for gene in space.genes if isinstance(gene, OptionGene)]


def _balanced(options: Sequence[int], count: int, rng: Random) -> list[int]:
    """Every option equally often, in random order."""
    row = [options[i % len(options)] for i in range(count)]
    rng.shuffle(row)
    return row


def _held(gene: OptionGene, held: Mapping[tuple[str, str], int], rng: Random) -> int:
    """The index of what a block of a probe holds."""
    option, rest = held[_name(gene)], [o for o in gene.options if o]
    if option not in gene.options or rng.random() < STRAY:
        option = rng.choice(rest)
    if option == 0 and gene.block % 2:
        option = rng.choice(rest)
    return gene.options.index(option)


def _near(level: float, options: Sequence[int], rng: Random) -> int:
    if options[0] == 0 and rng.random() < GONE:
        return 0
    return round(_share(level, rng) * (len(options) - 1))


def _share(level: float, rng: Random) -> float:
    return min(max(level + rng.uniform(-SPREAD, SPREAD), 0.0), 1.0)
