"""What Ray Tune calls: its search algorithm, scheduler, stop rule and listener; each finds its channel by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autoprune.executors.trials import CHANNELS

TOLD = ("step", "metrics", "per_window", "error", "kind")  # of what a trial reports


class Submitted(Searcher):
    """Proposes what a study has submitted, in that order: our searchers as a search algorithm of Tune."""

    def __init__(self, channel: str) -> None:
        super().__init__(metric="score", mode="min")
        self._name = channel

    def suggest(self, trial_id: str) -> Any:
        """The next job; None while there is none."""
        channel = CHANNELS[self._name]
        found = None if channel.closed.is_set() else channel.next()
        return Searcher.FINISHED if found is None and channel.closed.is_set() else found

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The listener tells the study."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep, the ledger knows; but Tune restores nothing without a file."""
        Path(checkpoint_path).write_text(self._name, encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Heard(Callback):
    """Hands each ended trial's last report to the study."""

    def __init__(self, channel: str) -> None:
        self._name = channel

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Where Tune has begun anew instead of restoring, nobody waits for what it had begun."""
        CHANNELS[self._name].settle([t.config for t in trials])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Whole, or given up by the scheduler."""
        last = dict(trial.last_result or {})
        told = {k: last[k] for k in TOLD if k in last} or {"error": "its trial reported nothing"}
        CHANNELS[self._name].told.put({**told, "proposal": trial.config["proposal"]})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """After its retries."""
        said = {"proposal": trial.config["proposal"], "error": "its trial's process died every time"}
        CHANNELS[self._name].told.put(said)


class Ended(Stopper):
    """Stops everything once the study has let go."""

    def __init__(self, channel: str) -> None:
        self._name = channel

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether the study has closed."""
        return CHANNELS[self._name].closed.is_set()


def scheduler(settings: Mapping[str, Any], run: Mapping[str, Any]) -> TrialScheduler:
    """ASHA over steps of recovery (Li et al., arXiv 1810.05934), or none."""
    steps = settings["steps"] or int(run["recovery"]["steps"])
    if settings["halving"] == 1:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        metric="score",
        mode="min",
        max_t=steps,
        grace_period=min(int(settings["first"]), steps),
        reduction_factor=settings["halving"],
    )
