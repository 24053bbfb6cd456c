"""The plans that a latency table is measured on: probes that tell options apart, and random ones to check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from autoprune.hardware.terms import EXPERTS, SIZES, Options
from autoprune.space import KEEP, KINDS, Candidate, OptionGene, Plan
from autoprune.sublayers import SublayerSpace

GONE = 0.1  # chance that a sublayer of a random plan is gone, whatever else it keeps
SMALLEST = 0.15  # level of the smallest random plan: what it keeps, between nothing (0) and everything (1)
SPREAD = (
    0.35  # how far a sublayer of a random plan may be from the plan's level, and a setting's level from it
)
STRAY = 0.3  # chance that a block of a probe does not hold the probe's option
PER_PART = 1.5  # probes for every number that is fitted
FEWEST = 18  # probes
EMPTIER = 3  # every so many probes one has fewer sublayers
EMPTIEST = 0.8  # chance of each to be gone, at most


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
    than alone, where all it touches stays in the nearest cache: so none is ever measured alone. Nothing is gone but in
    every third probe, where attentions and FFNs each are with a chance of their own, and the others smaller: without
    small models the fit would have to guess what is left when all is gone.
    """
    rng, found = Random(seed), {"dense": space.decode(space.dense)}
    settings = _settings(space)
    longest = max(map(len, settings.values()), default=0)
    count = max(FEWEST, round(PER_PART * parts), 2 * longest)
    leading = {name: _balanced([o for o in options if o], count, rng) for name, options in settings.items()}
    for number in range(count):
        held = {name: row[number] for name, row in leading.items()}
        values = [_held(gene, held, rng) for gene in _genes(space)]
        values = _fuller(space, values, rng)
        if number % EMPTIER == EMPTIER - 1:
            values = _emptied(space, values, rng)
        found[f"probe {number}"] = space.decode(Candidate(tuple(values)))
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
    option = held[_name(gene)]
    if option not in gene.options or rng.random() < STRAY:
        option = rng.choice([o for o in gene.options if o])
    return gene.options.index(option)


def _fuller(space: SublayerSpace, values: Sequence[int], rng: Random) -> list[int]:
    """The same indices, but tokens are dropped in some blocks only, in others of the probes in none.

    What is dropped is gone for all that follows: else few blocks would be seen to read many tokens.
    """
    chance = rng.uniform(-0.5, 1.0)
    return [
        len(gene.options) - 1 if gene.setting.startswith(KEEP) and rng.random() > chance else value
        for gene, value in zip(_genes(space), values, strict=True)
    ]


def _emptied(space: SublayerSpace, values: Sequence[int], rng: Random) -> list[int]:
    """The same indices without some sublayers, what is left smaller: never above a second draw."""
    chances: dict[str, float] = {kind: EMPTIEST * rng.random() for kind in KINDS}
    gone = {(b, kind): rng.random() < chances[kind] for b in range(space.full.blocks) for kind in KINDS}
    found = []
    for gene, value in zip(_genes(space), values, strict=True):
        if gene.setting in SIZES.values():
            other = rng.randrange(1, len(gene.options))
            value = 0 if gone[gene.block, gene.kind] else min(value, other)
        found.append(value)
    return found


def _near(level: float, options: Sequence[int], rng: Random) -> int:
    if options[0] == 0 and rng.random() < GONE:
        return 0
    return round(_share(level, rng) * (len(options) - 1))


def _share(level: float, rng: Random) -> float:
    return min(max(level + rng.uniform(-SPREAD, SPREAD), 0.0), 1.0)
