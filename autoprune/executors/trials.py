"""One experiment of Ray Tune, fed with a study's proposals and giving back what came of them.

Tune runs in a thread of its own until it is closed. Its search algorithm proposes what the study has submitted, so
that the study, and with it the ledger, decides what is tried and in which order. What Tune pickles for its own restore
lies in this user's artifact cache, never in a run folder.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoprune import errors
from autoprune.errors import AutopruneError, SettingError
from autoprune.executors import local
from autoprune.executors.attaching import check_address
from autoprune.executors.base import Spec
from autoprune.objective import Fidelity, Split
from autoprune.space import Plan, digest
from autoprune.study import Job

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # what a restore knows is at most so old
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # model and data may be named from where the run was started
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "600",
}
POLL = 0.5  # seconds
FATAL = ("SettingError", "LedgerError", "DataError", "UnsupportedModelError")  # no plan is at fault
WORST = 1e308  # a score that no plan has
TUNE = "tune"  # what Tune keeps of an experiment


def check_installed() -> None:
    """Raise SettingError without Ray Tune."""
    if any(find_spec(name) is None for name in ("ray", "pyarrow", "tensorboardX")):
        raise SettingError(
            "executor=tune needs Ray Tune, which is not installed: pip install autoprune[cluster]"
        )


class Channel:
    """Between a study and Tune: proposals in, reports out."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.restored: set[str] = set()  # trials that Tune goes on with by itself
        self._waiting: deque[dict[str, Any]] = deque()
        self._held: deque[dict[str, Any]] = deque()

    def add(self, job: Job) -> None:
        """Offer a job, unless a trial of it goes on."""
        config = config_of(job)
        (self._held if identity(config) in self.restored else self._waiting).append(config)

    def settle(self, known: Sequence[Mapping[str, Any]]) -> None:
        """Offer what was held back after all, if Tune knows no trial of it."""
        if self.restored and not self.restored & {identity(c) for c in known}:
            self.restored = set()
            self._waiting.extend(self._held)
            self._held.clear()

    def next(self) -> dict[str, Any] | None:
        """What is to be tried next."""
        return self._waiting.popleft() if self._waiting else None


CHANNELS: dict[str, Channel] = {}  # by the experiment's folder: Tune pickles whoever holds one


def config_of(job: Job) -> dict[str, Any]:
    """A job as plain data."""
    first, last = job.proposal.fidelity.windows
    return {"proposal": job.proposal.id, "plan": job.plan.to_json(), "first": first, "last": last}


def identity(config: Mapping[str, Any]) -> str:
    """The same for the same proposal, plan and windows."""
    return json.dumps({k: config[k] for k in ("proposal", "plan", "first", "last")}, sort_keys=True)


class Experiment:
    """A Tuner at work in a thread."""

    def __init__(
        self, folder: Path, spec: Spec, workers: int, address: str | None, settings: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self._spec, self._workers, self._address, self._settings = spec, workers, address, settings
        self._channel = CHANNELS[str(folder)] = Channel()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tune", daemon=True)
        self._thread.start()
        self._ready.wait()

    def add(self, job: Job) -> None:
        """Have a job tried."""
        self._channel.add(job)

    def next(self, timeout: float | None) -> dict[str, Any] | None:
        """The last report of the next trial that has ended, waiting for it at most so many seconds."""
        left = float("inf") if timeout is None else timeout
        while True:
            try:
                told = self._channel.told.get(timeout=max(min(POLL, left), 1e-3))
            except queue.Empty:
                left -= POLL
                if left <= 0:
                    return None
                continue
            if "fatal" in told:
                raise told["fatal"]
            if told.get("kind") in FATAL:
                raise getattr(errors, told["kind"])(told["error"])
            return told

    def close(self) -> None:
        """End Tune. Trainings that are cut short can be gone on with; Tune itself has nothing left to restore."""
        self._channel.closed.set()
        self._thread.join()
        shutil.rmtree(self.folder / TUNE, ignore_errors=True)
        CHANNELS.pop(str(self.folder), None)

    def _work(self) -> None:
        """Ray's processes end with the thread that started them, so it is this one."""
        import ray

        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told as a row
        held = ExitStack()
        try:
            if not ray.is_initialized():  # else it is the caller's own, and stays
                _start(held, self._workers * int(self._spec.settings["threads"]), self._address)
            tuner = self._tuner()
            self._ready.set()
            tuner.fit()
        except BaseException as error:  # raised by whoever waits for results
            self._channel.told.put({"fatal": error})
        finally:
            self._ready.set()
            held.close()

    def _tuner(self) -> Any:
        """A new one, or the one that a stopped run has left."""
        from ray import tune

        from autoprune.executors.bridge import Ended, Heard, Submitted, scheduler

        resources = {"cpu": int(self._spec.settings["threads"]), "gpu": float(self._settings["gpus"])}
        given = tune.with_parameters(
            run_trial, spec=self._spec, settings=dict(self._settings), folder=str(self.folder)
        )
        trainable = tune.with_resources(given, resources)
        if tune.Tuner.can_restore(str(self.folder / TUNE)):
            tuner = tune.Tuner.restore(str(self.folder / TUNE), trainable, resume_unfinished=True)
            self._channel.restored = {identity(c) for c in _unfinished(self.folder / TUNE)}
            return tuner
        self.folder.mkdir(parents=True, exist_ok=True)
        name = str(self.folder)
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=Submitted(name),
                scheduler=scheduler(self._settings, self._spec.settings),
                num_samples=-1,
                max_concurrent_trials=self._workers,
                reuse_actors=True,
                trial_dirname_creator=_dirname,
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=name,
                verbose=0,
                stop=Ended(name),
                callbacks=[Heard(name)],
                failure_config=tune.FailureConfig(max_failures=int(self._settings["retries"])),
            ),
        )


def run_trial(config: Mapping[str, Any], spec: Spec, settings: Mapping[str, Any], folder: str) -> None:
    """A trial: train the plan and report its scores at every rung; an error of ours is a report, too.

    So Tune tries again only where a process has died.
    """
    from ray import tune

    os.environ["AUTOPRUNE_CACHE"] = spec.cache
    fidelity = Fidelity(Split.FITNESS, (config["first"], config["last"]))
    told = {"proposal": config["proposal"]}

    def report(step: int, scores: Any) -> None:
        values = {name: column.tolist() for name, column in scores.per_window.items()}
        found = {"metrics": dict(scores.metrics), "per_window": values, "score": scores.metrics["kl"]}
        tune.report({"step": step, **told, **found})

    try:
        plan = Plan.from_json(config["plan"])
        state = Path(folder) / "states" / f"{plan.key}-{config['first']}-{config['last']}"
        _trials(spec, settings).run(plan, fidelity, state, report)
    except Exception as error:
        fault = type(error).__name__
        line = " ".join((str(error) if isinstance(error, AutopruneError) else f"{fault}: {error}").split())
        tune.report({"step": 0, "score": WORST, **told, "error": line[:300], "kind": fault})


HELD: dict[str, Any] = {}  # what a process has built for its trials, by what it was built from


def _trials(spec: Spec, settings: Mapping[str, Any]) -> Any:
    """What a process builds once for all its trials of one kind."""
    name = digest(asdict(spec), settings)
    if name not in HELD:
        from autoprune.run.trials import Trials

        HELD.clear()
        HELD[name] = Trials(spec, settings["steps"], settings["first"])
    return HELD[name]


def _start(held: ExitStack, cpus: int, address: str | None) -> None:
    """A Ray of our own, or one that runs already, until `held` is closed."""
    import ray

    if address is None:
        local.start(held, cpus)
        return
    local.leave()
    check_address(address)
    held.callback(ray.shutdown)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _unfinished(folder: Path) -> list[dict[str, Any]]:
    """Configurations of the trials that a stopped experiment goes on with."""
    states = sorted(folder.glob("experiment_state-*.json"))
    if not states:
        return []
    trials = json.loads(states[-1].read_text(encoding="utf-8"))["trial_data"]
    plain = [json.loads(trial) if isinstance(trial, str) else json.loads(trial[0]) for trial in trials]
    return [t["config"] for t in plain if t["status"] not in ("TERMINATED", "ERROR")]


def _dirname(trial: Any) -> str:
    return f"{trial.config['proposal']}-{trial.trial_id}"
