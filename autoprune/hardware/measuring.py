"""Measures a latency table: probes in one interleaved loop, an additive fit, a correction, its held-out error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedModel

from autoprune.errors import SettingError
from autoprune.hardware.designs import probes, profiled
from autoprune.hardware.dropping import flows
from autoprune.hardware.fingerprint import Value, fingerprint
from autoprune.hardware.fitting import HeldOut, additive, held_out, relative_line
from autoprune.hardware.parts import Flow, Term
from autoprune.hardware.routing import routing_skew
from autoprune.hardware.table import Entry, LatencyTable
from autoprune.hardware.terms import Options, terms_of
from autoprune.hardware.timing import Progress, Samples
from autoprune.hardware.workload import Workload, metrics_of, sample_models
from autoprune.shape import Shape
from autoprune.space import OptionGene, Plan
from autoprune.sublayers import SublayerSpace

Build = Callable[[Plan], PreTrainedModel]
Sampled = Mapping[str, Mapping[str, Samples]]
GIVEN = "as given"  # the name of that model
FEWEST_PLANS = 4  # two coefficients, each plan left out once


def measure_table(
    build: Build,
    shape: Shape,
    full: Plan,
    options: Options,
    workload: Workload,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    correction_plans: Sequence[Plan] = (),
    held_out_plans: Sequence[Plan] = (),
    facts: Mapping[str, Value] | None = None,
    given: PreTrainedModel | None = None,
    allow_contended: bool = False,
) -> LatencyTable:
    """Measure every option of the settings of `full` (zero and the full one are added), all in one loop.

    Without held-out plans the error is that of each correction plan under entries and correction by all others.
    `facts` join the fingerprint; `given`, what ratios are to where that is not the dense model, is only timed. All
    models are in memory at once. Raises MeasurementError when the machine is too busy.
    """
    _check(correction_plans, held_out_plans)
    space = profiled(full, options)
    measured = _measured(space, options)
    sizes = shape, *workload.sizes, measured
    designed = probes(space, 1 + sum(len(t.parts) for t in terms_of(*sizes)), seed)
    plans = designed | _numbered("correction", correction_plans) | _numbered("held-out", held_out_plans)
    models = {name: build(plan) for name, plan in plans.items()}
    dense = models["dense"]
    skew = routing_skew([models[name] for name in designed], workload) if shape.experts else 0.0
    models |= {} if given is None else {GIVEN: given}
    samples = sample_models(models, workload, seed, progress, allow_contended)
    fit = Fit(plans, terms_of(*sizes, skew), samples, _flow(shape, workload))
    table = LatencyTable(
        *fit.entries(),
        workload=workload,
        fingerprint=fingerprint(workload.threads, str(dense.device)) | dict(facts or {}),
        shape=asdict(shape),
        dtype=str(dense.dtype).removeprefix("torch."),
        options=measured,
        settled={n: v for s in full.sublayers for n, v in s.settings if n not in measured},
        correction=dict.fromkeys(metrics_of(shape.task), (0.0, 1.0)),
        dense_ms=_milliseconds(samples, "dense"),
        given_ms=_milliseconds(samples, GIVEN),
        dense_wall_ms={m: 1000 * s.wall_median for m, s in samples["dense"].items()},
        graphs=tuple(m for m, s in samples["dense"].items() if s.graph),
        skew=skew,
        rounds=min(len(s.seconds) for of in samples.values() for s in of.values()),
    )
    return fit.corrected(table) if correction_plans else table


def _numbered(kind: str, plans: Sequence[Plan]) -> dict[str, Plan]:
    return {f"{kind} {i}": plan for i, plan in enumerate(plans)}


def _milliseconds(samples: Sampled, name: str) -> dict[str, float]:
    """Of a model, by metric; nothing where it was not timed."""
    return {metric: 1000 * of.median for metric, of in samples.get(name, {}).items()}


def _measured(space: SublayerSpace, options: Options) -> dict[str, tuple[int, ...]]:
    """The options of every setting: what has a gene was measured at all of them."""
    own = {g.setting: g.options for g in space.genes if isinstance(g, OptionGene)}
    return {name: tuple(o) for name, o in options.items()} | own


def _flow(shape: Shape, workload: Workload) -> Callable[[Plan], list[Flow]]:
    """The tokens that pass through a plan."""
    return lambda plan: flows(plan, workload.prefill_tokens, shape.specials)


def _amounts(plan: Plan, terms: Sequence[Term], metric: str, flow: Sequence[Flow]) -> list[float]:
    """1 for the base, then how much there is of every part in the whole plan."""
    found = [1.0]
    for term in terms:
        total = [0.0] * len(term.parts)
        for sublayer, passed in zip(plan.sublayers, flow, strict=True):
            if sublayer.kind == term.kind and not sublayer.gone:
                own = term.amounts(sublayer, metric, passed)
                total = [a + b for a, b in zip(total, own, strict=True)]
        found += total
    return found


@dataclass(frozen=True)
class Fit:
    """Entries and correction from the times of probes and correction plans; held-out plans are only predicted."""

    plans: Mapping[str, Plan]
    terms: Sequence[Term]
    samples: Sampled
    flow: Callable[[Plan], list[Flow]]

    def entries(self) -> tuple[dict[str, float], tuple[Entry, ...]]:
        """Base and entries; their noise is the distance between the fits of both halves of rounds."""
        parts = [part for term in self.terms for part in term.parts]
        metrics = tuple(self.samples["dense"])
        found = {m: self.solved(m) for m in metrics}
        halves = {m: [self.solved(m, odd=odd) for odd in (False, True)] for m in metrics}
        rows = []
        for index, part in enumerate(parts, 1):
            ms = {m: 1000 * found[m][index] for m in metrics}
            noise = {m: 1000 * abs(even[index] - odd[index]) for m, (even, odd) in halves.items()}
            rows.append(Entry(part.kind, part.name, part.option, ms, noise))
        return {m: 1000 * found[m][0] for m in metrics}, tuple(rows)

    def corrected(self, table: LatencyTable) -> LatencyTable:
        """With the correction, and its error: of held-out plans, or of each correction plan left out."""
        correction = {m: self.line(m, self.solved(m)) for m in table.metrics}
        error = {m: self.error(m, correction[m]) for m in table.metrics}
        return replace(table, correction=correction, error=error)

    def error(self, metric: str, line: tuple[float, float]) -> HeldOut:
        """Of predictions of plans that nothing was fitted to."""
        if held := self.named("held-out"):
            solution = self.solved(metric)
            told = [self.told(metric, name, solution, line) for name in held]
        else:
            held = self.named("correction")
            told = [self.left_out(metric, name) for name in held]
        return held_out(told, [self.ms(metric, name) for name in held])

    def left_out(self, metric: str, name: str) -> float:
        """What a correction plan would have been told, had it not been measured."""
        solution = self.solved(metric, without=name)
        return self.told(metric, name, solution, self.line(metric, solution, name))

    def solved(self, metric: str, odd: bool | None = None, without: str = "") -> list[float]:
        """Seconds of the base and of every part; from all rounds or every second one."""
        parts = [part for term in self.terms for part in term.parts]
        after, signed = ([False, *(getattr(p, name) for p in parts)] for name in ("after", "signed"))
        names = [n for n in self.plans if not n.startswith("held-out") and n != without]
        rows = [self.samples[name][metric] for name in names]
        times = [(row if odd is None else row.half(odd)).median for row in rows]
        return additive([self.amounts(metric, name) for name in names], times, after, signed)

    def line(self, metric: str, solution: Sequence[float], without: str = "") -> tuple[float, float]:
        """The correction (ms, slope) of sums of parts."""
        names = [name for name in self.named("correction") if name != without]
        sums = [self.told(metric, name, solution, (0.0, 1.0)) for name in names]
        return relative_line(sums, [self.ms(metric, name) for name in names])

    def told(self, metric: str, name: str, solution: Sequence[float], line: tuple[float, float]) -> float:
        """A predicted time in milliseconds."""
        parts = zip(self.amounts(metric, name), solution, strict=True)
        return line[0] + line[1] * 1000 * sum(amount * seconds for amount, seconds in parts)

    def ms(self, metric: str, name: str) -> float:
        """A measured time."""
        return 1000 * self.samples[name][metric].median

    def named(self, kind: str) -> list[str]:
        """The names of the correction or the held-out plans."""
        return [name for name in self.plans if name.startswith(f"{kind} ")]

    def amounts(self, metric: str, name: str) -> list[float]:
        """1 for the base, then how much there is of every part in a whole plan."""
        plan = self.plans[name]
        return _amounts(plan, self.terms, metric, self.flow(plan))


def _check(correction_plans: Sequence[Plan], held_out_plans: Sequence[Plan]) -> None:
    fitted = {plan.key for plan in correction_plans}
    if correction_plans and len(fitted) < FEWEST_PLANS:
        raise SettingError(f"the correction takes at least {FEWEST_PLANS} different plans, not {len(fitted)}")
    if held_out_plans and not correction_plans:
        raise SettingError("held-out plans go with correction plans")
    if fitted & {plan.key for plan in held_out_plans}:
        raise SettingError("a held-out plan is one of those that the correction is fitted to")
