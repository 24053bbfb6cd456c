"""`autoprune profile`: what each sublayer costs at each option on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.hardware.table import LatencyTable
from autoprune.run.latency import cached_table, copy_table
from autoprune.run.parts import open_parts

if TYPE_CHECKING:
    from autoprune.progress import Progress


def profile_model(model: str, to: Path | None, settings: list[str], progress: Progress) -> None:
    """Measure (or take from the cache) and print the table; save it to `to` for latency.file=FILE."""
    from autoprune.config import compose

    cfg = compose([f"model={model}", *settings])
    folder = cached_table(open_parts(cfg, progress), progress)
    print(describe(LatencyTable.load(folder / "latency.json")))
    if to is not None:
        copy_table(folder, to)
        print(f"saved {to}")


def describe(table: LatencyTable) -> str:
    """The table as text: milliseconds as measured, and the error of predictions on held-out models."""
    lines = [f"{'part':<22}{'prefill ms':>12}{'decode ms':>12}"]
    lines.append(f"{'everything else':<22}{table.base_ms['prefill']:>12.4f}{table.base_ms['decode']:>12.4f}")
    for entry in table.entries:
        name = f"{entry.kind} {entry.option}"
        lines.append(f"{name:<22}{entry.ms['prefill']:>12.4f}{entry.ms['decode']:>12.4f}")
    for metric, (mean, largest) in table.error.items():
        lines.append(f"{metric}: held-out error {mean:.1%} on average, {largest:.1%} at most")
    return "\n".join(lines)
