"""Measures a latency table: probes in one interleaved loop, an additive fit, a correction, its held-out error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedModel

from autoprune.errors import SettingError
from autoprune.hardware.designs import all_options, probes
from autoprune.hardware.fingerprint import fingerprint
from autoprune.hardware.fitting import additive, held_out, left_out, relative_line
from autoprune.hardware.table import SETTING, UNCORRECTED, Entry, LatencyTable
from autoprune.hardware.timing import Progress, Samples
from autoprune.hardware.workload import METRICS, Workload, sample_models
from autoprune.shape import Shape
from autoprune.space import KINDS, Kind, Plan, plan_cost

Build = Callable[[Plan], PreTrainedModel]
Sampled = Mapping[str, Mapping[str, Samples]]
FEWEST_PLANS = 4  # two coefficients, each plan left out once


def measure_table(
    build: Build,
    shape: Shape,
    kv_options: Sequence[int],
    ffn_options: Sequence[int],
    workload: Workload,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    correction_plans: Sequence[Plan] = (),
    held_out_plans: Sequence[Plan] = (),
    allow_contended: bool = False,
) -> LatencyTable:
    """Measure every option (zero and the full one are added), correct on whole models, all in one loop.

    Without held-out plans the error is that of each correction plan under the correction by all others. All
    models are in memory at once. Raises MeasurementError when the machine is too busy.
    """
    _check(correction_plans, held_out_plans)
    designed = probes(shape, kv_options, ffn_options, seed)
    plans = designed | {f"correction {i}": plan for i, plan in enumerate(correction_plans)}
    plans |= {f"held-out {i}": plan for i, plan in enumerate(held_out_plans)}
    models = {name: build(plan) for name, plan in plans.items()}
    dense = models["dense"]
    samples = sample_models(models, workload, seed, progress, allow_contended)
    options = dict(zip(KINDS, (o[1:] for o in all_options(shape, kv_options, ffn_options)), strict=True))
    base, entries = _fit(designed, options, samples)
    table = LatencyTable(
        base_ms=base,
        entries=entries,
        workload=workload,
        fingerprint=fingerprint(workload.threads, str(dense.device)),
        shape=asdict(shape),
        dtype=str(dense.dtype).removeprefix("torch."),
        dense_ms={m: 1000 * samples["dense"][m].median for m in METRICS},
        dense_wall_ms={m: 1000 * samples["dense"][m].wall_median for m in METRICS},
        rounds=min(len(s.seconds) for of in samples.values() for s in of.values()),
    )
    return _corrected(table, plans, samples) if correction_plans else table


def _fit(
    plans: Mapping[str, Plan], options: Mapping[Kind, Sequence[int]], samples: Sampled
) -> tuple[dict[str, float], tuple[Entry, ...]]:
    """Base and entries that explain the probes; noise is the distance between the fits of both halves of rounds."""
    counts = [_counts(plan, options) for plan in plans.values()]
    parts: dict[str, list[list[float]]] = {}  # per metric: of all rounds, of the even ones, of the odd ones
    for metric in METRICS:
        rows = [samples[name][metric] for name in plans]
        halves = ([r.half(odd).median for r in rows] for odd in (False, True))
        parts[metric] = [_summed(additive(counts, t), options) for t in ([r.median for r in rows], *halves)]
    base = {m: 1000 * parts[m][0][0] for m in METRICS}
    entries = []
    for index, (kind, option) in enumerate([(k, o) for k in KINDS for o in options[k]], 1):
        ms = {m: 1000 * parts[m][0][index] for m in METRICS}
        noise = {m: 1000 * abs(parts[m][1][index] - parts[m][2][index]) for m in METRICS}
        entries.append(Entry(kind, option, ms, noise))
    return base, tuple(entries)


def _counts(plan: Plan, options: Mapping[Kind, Sequence[int]]) -> list[float]:
    """1 for the base, then for every option how many blocks keep at least it: parts are what a step adds."""
    kept = {k: [int(plan.at(b, k).get(SETTING[k])) for b in range(plan.blocks)] for k in KINDS}
    return [1.0, *(float(sum(v >= o for v in kept[k])) for k in KINDS for o in options[k])]


def _summed(steps: Sequence[float], options: Mapping[Kind, Sequence[int]]) -> list[float]:
    """The base, then what each option costs: the steps up to it."""
    found, at = [steps[0]], 1
    for kind in KINDS:
        total = 0.0
        for step in steps[at : at + len(options[kind])]:
            total += step
            found.append(total)
        at += len(options[kind])
    return found


def _corrected(table: LatencyTable, plans: Mapping[str, Plan], samples: Sampled) -> LatencyTable:
    raw = replace(table, correction=dict(UNCORRECTED))
    fitted = [name for name in plans if name.startswith("correction ")]
    held = [name for name in plans if name.startswith("held-out ")]
    correction, error = {}, {}
    for metric in METRICS:
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
