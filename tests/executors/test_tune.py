"""Ray Tune for evaluations that train: the numbers of a training by hand, early ends, failures, and a killed driver."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoprune.errors import LedgerError, SettingError
from autoprune.executors.trials import Channel, Experiment, config_of, run_trial
from autoprune.executors.tune import Tune
from autoprune.ledger import Ledger
from autoprune.objective import Objective, Proposal
from autoprune.run.parts import Parts
from autoprune.run.remote import spec_of
from autoprune.run.trials import Trials
from autoprune.searchers.nsga2 import NSGA2
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate, Plan
from autoprune.study import Budget, Job, Phase, Study
from tests import forking, tiny
from tests.executors.dear import BLOCKS, FIDELITY, LONG, PLANS, RUNG, STEPS, jobs, opened, parts, train
from tests.ray_nodes import Nodes

pytestmark = [pytest.mark.ray, pytest.mark.alone]
WANTED = (Objective("kl"), Objective("params"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dear"))
    (made / "text.txt").write_text(tiny.text(20_000))
    tiny.save(tiny.llama(noise=0.1), made / "model")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def made(folder: Path) -> Iterator[Parts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPRUNE_CACHE", str(folder / "cache"))
        yield parts(folder)


def by_hand(made: Parts, plan: Plan, folder: Path) -> dict[int, float]:
    """KL after every rung of a plan's training."""
    found: dict[int, float] = {}
    trials = Trials(spec_of(made), None, RUNG)
    trials.run(plan, FIDELITY, folder, lambda step, scores: found.update({step: scores.metrics["kl"]}))
    return found


def test_a_study_of_trained_plans(made: Parts, tmp_path: Path) -> None:
    executor, space = opened(made, halving=2, retries=0), made.space(None)
    searcher = NSGA2(Problem(space, WANTED, (), 0, 8, (space.dense,)), population=4, windows=4)
    ledger = Ledger.create(tmp_path / "ledger.sqlite", {})
    phase = Phase(0, space, searcher, WANTED, (), Budget(evaluations=6), 16)
    assert Study(phase, ledger, executor).run() == "evaluations"
    telemetry = ledger.telemetry()
    rows = [r for _, r in ledger.recorded()]
    ledger.close()
    steps = [int(r.result.metrics["recovery_steps"]) for r in rows if r.origin == "evaluated"]
    assert len(steps) == telemetry["trials"] == 6 and sum(steps) == telemetry["recovery_steps"]
    assert STEPS in steps and set(steps) <= {RUNG, STEPS}
    assert RUNG in steps, "of six trials some are given up at the first rung"
    one = next(r.result for r in rows if r.result.metrics["recovery_steps"] == STEPS)
    expected = by_hand(made, space.decode(one.proposal.candidate), tmp_path)
    assert one.metrics["kl"] == expected[STEPS] and len(one.per_window["kl"]) == 4
    bad = Job(Proposal(99, Candidate((0,)), FIDELITY), Plan.of([(99, 24)] * BLOCKS))
    executor.submit([bad])
    (failed,) = executor.results()
    assert not failed.ok and "99 KV groups" in failed.reason
    executor.close()
    assert not list((Path(spec_of(made).cache) / ".tune").iterdir()), "nothing is kept of what is finished"


def test_training_helps(made: Parts, tmp_path: Path) -> None:
    """Else there would be no reason to pay for it."""
    (untrained,) = made.evaluation(made.evaluators).evaluate(PLANS[2:3], FIDELITY)
    found: dict[int, float] = {}
    trials = Trials(spec_of(made), 60, 30)
    trials.run(PLANS[2], FIDELITY, tmp_path, lambda step, scores: found.update({step: scores.metrics["kl"]}))
    assert list(found) == [30, 60] and found[60] < 0.85 * untrained.metrics["kl"]  # type: ignore[union-attr]


def test_a_killed_driver_s_trial_goes_on(made: Parts, folder: Path, nodes: Nodes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    often = {"TUNE_GLOBAL_CHECKPOINT_S": "0.1"}  # seconds: Tune notes at once what there is
    driver = forking.start(log, often, train, folder, nodes.address)
    deadline, kept = time.monotonic() + 120, Path(spec_of(made).cache) / ".tune"
    try:
        while not (_noted(kept) and list(kept.glob("*/states/*/state.safetensors"))):
            assert driver.is_alive() and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.join()
    executor = opened(made, address=nodes.address, **LONG)
    assert executor._experiment is not None and executor._experiment._channel.restored
    executor.submit(jobs(1))
    (found,) = executor.results()
    executor.close()
    trials, rungs = Trials(spec_of(made), LONG["steps"], LONG["first"]), dict[int, float]()
    trials.run(PLANS[0], FIDELITY, tmp_path, lambda step, scores: rungs.update({step: scores.metrics["kl"]}))
    assert found.ok and found.metrics["kl"] == rungs[LONG["steps"]]


def _noted(folder: Path) -> bool:
    """Whether Tune has noted a trial."""
    files = sorted(folder.glob("*/tune/experiment_state-*.json"))
    return bool(files) and "proposal" in files[-1].read_text()


def test_what_no_plan_is_at_fault_for_ends_the_search(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial reports it like any other end; the study hears it as an error."""
    from ray import tune

    said: list[dict[str, object]] = []
    monkeypatch.setattr(tune, "report", said.append)
    spec = spec_of(made)
    other = replace(spec, digests={**spec.digests, "corpus": "0123"})
    run_trial(config_of(jobs(1)[0]), other, {"steps": None, "first": RUNG}, str(tmp_path))
    experiment = Experiment.__new__(Experiment)
    experiment._channel = Channel()
    experiment._channel.told.put(said[0])
    with pytest.raises(LedgerError, match="a worker found another corpus"):
        experiment.next(None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "executor.workers=0 is out of range"),
        ({"first": 1}, "executor.first=1 is out of range; it must be at least 2"),
        ({"halving": 0}, "executor.halving=0"),
        ({"steps": 1}, "executor.steps=1"),
        ({"retries": -1}, "executor.retries=-1"),
        ({"gpus": -0.5}, "executor.gpus=-0.5"),
    ],
)
def test_mistakes(settings: dict[str, int], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Tune(**settings)


def test_it_needs_a_recovery(made: Parts) -> None:
    spec = spec_of(made)
    with pytest.raises(SettingError, match="set recovery=distill, or take executor=ray"):
        Tune().open(
            made.evaluation(made.evaluators), replace(spec, settings={**spec.settings, "recovery": {}})
        )
