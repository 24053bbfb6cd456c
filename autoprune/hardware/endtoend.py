"""End-to-end times of whole models, measured against each other: what the promise is made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from autoprune.errors import SettingError, nearest
from autoprune.hardware.timing import Progress, Samples
from autoprune.hardware.workload import METRICS, Workload, sample_models


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a prefill and of a decoded token with 95 % intervals of the median; a classifier only reads.

    Ratios are to the reference model, paired round by round; None when no reference was named.
    """

    prefill_ms: float
    prefill_low: float
    prefill_high: float
    decode_ms: float | None = None
    decode_low: float | None = None
    decode_high: float | None = None
    prefill_ratio: float | None = None
    prefill_ratio_low: float | None = None
    prefill_ratio_high: float | None = None
    decode_ratio: float | None = None
    decode_ratio_low: float | None = None
    decode_ratio_high: float | None = None

    def interval(self, metric: str) -> tuple[float, float]:
        """The interval of `prefill` or `decode`, in milliseconds."""
        if metric not in METRICS:
            raise SettingError(f"{metric!r} is not measured end to end" + nearest(metric, METRICS))
        return getattr(self, f"{metric}_low"), getattr(self, f"{metric}_high")


def measure_models(
    models: Mapping[str, PreTrainedModel],
    workload: Workload,
    seed: int = 0,
    progress: Progress | None = None,
    reference: str | None = None,
    allow_contended: bool = False,
) -> dict[str, Measured]:
    """Measure all models in one interleaved loop, so that they share whatever the machine does meanwhile."""
    if reference is not None and reference not in models:
        raise SettingError(f"reference={reference!r} is not among the models" + nearest(reference, models))
    samples = sample_models(models, workload, seed, progress, allow_contended)
    base = None if reference is None else samples[reference]
    return {name: summary(of, base) for name, of in samples.items()}


def summary(samples: Mapping[str, Samples], reference: Mapping[str, Samples] | None = None) -> Measured:
    """Medians, intervals and paired ratios of one model's samples."""
    values: dict[str, float] = {}
    for metric in samples:
        low, high = samples[metric].interval
        values |= {f"{metric}_ms": 1000 * samples[metric].median}
        values |= {f"{metric}_low": 1000 * low, f"{metric}_high": 1000 * high}
        if reference is not None:
            ratio = samples[metric].over(reference[metric])
            values |= {f"{metric}_ratio": ratio.median}
            values |= {f"{metric}_ratio_low": ratio.interval[0], f"{metric}_ratio_high": ratio.interval[1]}
    return Measured(**values)


def faster(a: Measured, b: Measured, metric: str) -> bool:
    """True only when the intervals of `prefill` or `decode` do not overlap and a's is the lower."""
    return a.interval(metric)[1] < b.interval(metric)[0]
