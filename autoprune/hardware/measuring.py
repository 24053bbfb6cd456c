"""Measures a latency table: probes in one interleaved loop, an additive fit, a correction, its held-out error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedModel

from autoprune.errors import SettingError
from autoprune.hardware.designs import probes, profiled
from autoprune.hardware.fingerprint import Value, fingerprint
from autoprune.hardware.fitting import additive, held_out, left_out, relative_line
from autoprune.hardware.table import Entry, LatencyTable
from autoprune.hardware.terms import Flow, Options, Term, flows, terms_of
from autoprune.hardware.timing import Progress, Samples
from autoprune.hardware.workload import Workload, metrics_of, sample_models
from autoprune.shape import Shape
from autoprune.space import OptionGene, Plan, plan_cost
from autoprune.sublayers import SublayerSpace

Build = Callable[[Plan], PreTrainedModel]
Sampled = Mapping[str, Mapping[str, Samples]]
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
    allow_contended: bool = False,
) -> LatencyTable:
    """Measure every option of the settings of `full` (zero and the full one are added), correct on whole models.

    All in one loop. Without held-out plans the error is that of each correction plan under the correction by all
    others. `facts` join the fingerprint. All models are in memory at once. Raises MeasurementError when the machine
    is too busy.
    """
    _check(correction_plans, held_out_plans)
    space = profiled(full, options)
    measured = _measured(space, options)
    terms = terms_of(shape, workload.tokens, workload.context, measured)
    designed = probes(space, 1 + sum(len(t.parts) for t in terms), seed)
    plans = designed | {f"correction {i}": plan for i, plan in enumerate(correction_plans)}
    plans |= {f"held-out {i}": plan for i, plan in enumerate(held_out_plans)}
    models = {name: build(plan) for name, plan in plans.items()}
    dense = models["dense"]
    samples = sample_models(models, workload, seed, progress, allow_contended)
    base, entries = _fit(designed, terms, samples, _flow(shape, workload))
    table = LatencyTable(
        base_ms=base,
        entries=entries,
        workload=workload,
        fingerprint=fingerprint(workload.threads, str(dense.device)) | dict(facts or {}),
        shape=asdict(shape),
        dtype=str(dense.dtype).removeprefix("torch."),
        options=measured,
        settled={n: v for s in full.sublayers for n, v in s.settings if n not in measured},
        correction=dict.fromkeys(metrics_of(shape.task), (0.0, 1.0)),
        dense_ms={m: 1000 * s.median for m, s in samples["dense"].items()},
        dense_wall_ms={m: 1000 * s.wall_median for m, s in samples["dense"].items()},
        graphs=tuple(m for m, s in samples["dense"].items() if s.graph),
        rounds=min(len(s.seconds) for of in samples.values() for s in of.values()),
    )
    return _corrected(table, plans, samples) if correction_plans else table


def _measured(space: SublayerSpace, options: Options) -> dict[str, tuple[int, ...]]:
    """The options of every setting: what has a gene was measured at all of them."""
    own = {g.setting: g.options for g in space.genes if isinstance(g, OptionGene)}
    return {name: tuple(o) for name, o in options.items()} | own


def _flow(shape: Shape, workload: Workload) -> Callable[[Plan], list[Flow]]:
    """The tokens that pass through a plan."""
    return lambda plan: flows(plan, workload.prefill_tokens, shape.specials)


def _fit(
    plans: Mapping[str, Plan],
    terms: Sequence[Term],
    samples: Sampled,
    flow: Callable[[Plan], list[Flow]],
) -> tuple[dict[str, float], tuple[Entry, ...]]:
    """Base and entries that explain the probes; noise is the distance between the fits of both halves of rounds."""
    parts = [part for term in terms for part in term.parts]
    after, signed = ([False, *(getattr(p, name) for p in parts)] for name in ("after", "signed"))
    found: dict[str, list[list[float]]] = {}  # per metric: of all rounds, of the even ones, of the odd ones
    metrics = tuple(samples["dense"])
    for metric in metrics:
        rows = [samples[name][metric] for name in plans]
        amounts = [_amounts(plan, terms, metric, flow(plan)) for plan in plans.values()]
        halves = ([r.half(odd).median for r in rows] for odd in (False, True))
        found[metric] = [additive(amounts, t, after, signed) for t in ([r.median for r in rows], *halves)]
    base = {m: 1000 * found[m][0][0] for m in metrics}
    entries = []
    for index, part in enumerate(parts, 1):
        ms = {m: 1000 * found[m][0][index] for m in metrics}
        noise = {m: 1000 * abs(found[m][1][index] - found[m][2][index]) for m in metrics}
        entries.append(Entry(part.kind, part.name, part.option, ms, noise))
    return base, tuple(entries)


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


def _corrected(table: LatencyTable, plans: Mapping[str, Plan], samples: Sampled) -> LatencyTable:
    raw = replace(table, correction={m: (0.0, 1.0) for m in table.metrics})
    fitted = [name for name in plans if name.startswith("correction ")]
    held = [name for name in plans if name.startswith("held-out ")]
    correction, error = {}, {}
    for metric in table.metrics:
        sums = {name: plan_cost(plans[name], raw)[metric] for name in (*fitted, *held)}
        times = {name: 1000 * samples[name][metric].median for name in (*fitted, *held)}
        known = [sums[n] for n in fitted], [times[n] for n in fitted]
        correction[metric] = a, b = relative_line(*known)
        if held:
            error[metric] = held_out([a + b * sums[n] for n in held], [times[n] for n in held])
        else:
            error[metric] = held_out(left_out(*known), known[1])
    return replace(table, correction=correction, error=error)


def _check(correction_plans: Sequence[Plan], held_out_plans: Sequence[Plan]) -> None:
    fitted = {plan.key for plan in correction_plans}
    if correction_plans and len(fitted) < FEWEST_PLANS:
        raise SettingError(f"the correction takes at least {FEWEST_PLANS} different plans, not {len(fitted)}")
    if held_out_plans and not correction_plans:
        raise SettingError("held-out plans go with correction plans")
    if fitted & {plan.key for plan in held_out_plans}:
        raise SettingError("a held-out plan is one of those that the correction is fitted to")
