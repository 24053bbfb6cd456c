"""`autoprune profile`: what each sublayer costs at each option on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.hardware.table import LatencyTable
from autoprune.run.latency import cached_table, checked_table, copy_table
from autoprune.run.parts import open_parts

if TYPE_CHECKING:
    from autoprune.progress import Progress


def profile_model(model: str, to: Path | None, settings: list[str], progress: Progress) -> None:
    """Measure (or take from the cache) and print the table; save it to `to` for latency.file=FILE."""
    from autoprune.config import compose

    cfg = compose([f"model={model}", *settings])
    parts = open_parts(cfg, progress)
    print(describe(checked_table(parts, progress)))
    if to is not None:
        copy_table(cached_table(parts, progress), to)
        print(f"saved {to}")


def describe(table: LatencyTable) -> str:
    """The table as text: milliseconds before the correction, and the error of predictions on held-out plans."""
    wide = max(24, *(len(entry.text) + 2 for entry in table.entries))
    rows = [("everything else", table.base_ms), *((entry.text, entry.ms) for entry in table.entries)]
    rows += [("dense, measured", table.dense_ms), ("dense, wall clock", table.dense_wall_ms)]
    rows += [("as given, measured", table.given_ms)]
    lines = [f"{'part':<{wide}}" + "".join(f"{f'{m} ms':>12}" for m in table.metrics)]
    lines += [f"{name:<{wide}}" + _cells([ms[m] for m in table.metrics]) for name, ms in rows if ms]
    work = table.workload
    lines.append(
        f"batch {work.batch}, prefill of {work.prefill_tokens} tokens, decode from {work.context}, {table.dtype}, "
        f"{work.threads} threads, {table.rounds} of {work.rounds} rounds"
    )
    if table.fingerprint.get("gpu"):
        ways = [f"{m} {'replayed as CUDA graphs' if m in table.graphs else 'eagerly'}" for m in table.metrics]
        lines.append(f"timed {', '.join(ways)}")
    for metric, held in table.error.items():
        a, b = table.correction[metric]
        lines.append(
            f"{metric}: {a:.3f} ms + {b:.3f} x sum; on {held.plans} held-out plans off by {held.mean:.1%} on average, "
            f"{held.largest:.1%} at most, rank correlation {held.rank:.3f}"
        )
    return "\n".join(lines)


def _cells(values: list[float]) -> str:
    return "".join(f"{value:>12.4f}" for value in values)
