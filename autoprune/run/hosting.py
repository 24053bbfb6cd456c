"""The executor of a run: started early where that disturbs no measurement, let go at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.run.folder import LATENCY
from autoprune.run.parts import instantiate

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.executors.base import Opened
    from autoprune.progress import Progress


@contextmanager
def hosting(cfg: DictConfig, path: Path, progress: Progress, searches: bool = True) -> Iterator[Opened]:
    """The executor that the settings name; if the run still searches, its workers load while the driver does."""
    executor: Opened = instantiate(cfg.executor)
    if hasattr(executor, "say"):
        executor.say = progress.say
    try:
        if searches and not _will_measure(cfg, path):
            executor.begin(int(cfg.threads))
        yield executor
    finally:
        executor.close()


def _will_measure(cfg: DictConfig, path: Path) -> bool:
    """Whether the latency of sublayers is about to be timed: then nothing else may run."""
    return cfg.latency.mode != "off" and cfg.latency.file is None and not (path / LATENCY).is_file()
