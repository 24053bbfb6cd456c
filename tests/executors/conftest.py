"""A search on a tiny model as executors are given it; one unit of its ladders is NaN."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoprune.evaluation import Evaluation
from autoprune.executors.base import Opened, Spec
from autoprune.executors.cluster import QUIET
from autoprune.executors.local import UNUSED
from autoprune.executors.ray import Ray
from autoprune.executors.submission.local import Local, _naming
from autoprune.ledger import Ledger
from autoprune.objective import Objective
from autoprune.run.parts import Parts
from autoprune.run.remote import spec_of
from autoprune.searchers.nsga2 import NSGA2
from autoprune.searchers.problem import Problem
from autoprune.space import Plan
from autoprune.study import Budget, Phase, Study
from tests import made_up_ray, tiny
from tests.ray_nodes import Nodes, gone, rays

WANTED = (Objective("kl"), Objective("params"))
SETTINGS = ("window=16", "sequences=4", "calibration.tokens=256", "latency.mode=off", "quiet=true")
BAD = 1  # the block whose widest FFN gives NaN


@dataclass(frozen=True)
class Bench:
    """What an executor is opened with, and a study to run on it."""

    parts: Parts

    @property
    def spec(self) -> Spec:
        return spec_of(self.parts)

    def evaluation(self) -> Evaluation:
        return self.parts.evaluation(self.parts.evaluators[:1])

    def study(self, executor: Opened, path: Path) -> list[tuple[Any, ...]]:
        """The ordered ledger of three generations."""
        space = self.parts.space(None)
        problem = Problem(space, WANTED, (), seed=3, windows=12, seeds=(space.dense,))
        searcher = NSGA2(problem, population=10, windows=12)
        phase = Phase(0, space, searcher, WANTED, (), Budget(evaluations=26), 16)
        with closing(Ledger.create(path / "ledger.sqlite", {})) as ledger:
            assert Study(phase, ledger, executor).run() == "evaluations"
            return ledger.ordered()


def _open(model: Path, text: Path) -> Parts:
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts

    cfg = compose([f"model={model}", f"data={text}", "out=unused", *SETTINGS])
    with Progress(quiet=True) as progress:
        return open_parts(cfg, progress)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """With an artifact cache of its own: its ladders are spoilt."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(noise=0.1), folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPRUNE_CACHE", str(folder / "cache"))
        file = _open(folder / "model", folder / "text.txt").ladder_folder / "ladders.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        tensors[f"{BAD}.ffn.gate"][-1] = torch.nan  # the last row: the unit that only the widest option has
        save_file(tensors, file)
        yield Bench(_open(folder / "model", folder / "text.txt"))


@pytest.fixture(scope="session")
def plans() -> list[Plan]:
    """Some that share prefixes; then one that gives NaN and one that raises."""
    narrow = [(2, 48), (2, 24), (2, 48)]
    good = [
        Plan.of([*narrow[:block], (groups, width), *narrow[block + 1 :]])
        for block in range(3)
        for groups, width in ((1, 24), (2, 12), (0, 36))
    ]
    return [*good, Plan.of([(2, 48)] * 3), Plan.of([(2, 48), (99, 24), (2, 48)])]


@pytest.fixture(scope="session")
def undisturbed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The ordered ledger that every executor must come to."""
    from autoprune.executors.serial import Serial

    executor = Serial()
    executor.open(bench.evaluation(), bench.spec)
    return bench.study(executor, tmp_path_factory.mktemp("serial"))


@pytest.fixture(scope="session", autouse=True)
def no_tokens() -> Iterator[None]:
    """Unless a test wants them: a process that has started a Ray with one asks all others for it, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """One cluster for all tests that need nodes."""
    before = rays()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIET | UNUSED).items():
            patch.setenv(name, value)
        # agents that serve no dashboard load a third of the libraries
        patch.setattr("ray._private.utils.get_dashboard_dependency_error", ImportError)
        made = Nodes()
        yield made
        started = rays() - before
        made.close()
    assert gone(started), "processes of Ray outlived the cluster"


@pytest.fixture(scope="session")
def guarded() -> Iterator[Path]:
    """Where a head lives that takes jobs and asks for a token; a short path, as sockets want it."""
    folder = Path(tempfile.mkdtemp(prefix="ap", dir="/tmp"))
    made = Local(cpus=2, folder=str(folder))
    made.address()
    yield folder
    made.down()
    left = _naming(str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, "Ray processes are left behind"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> made_up_ray.World:
    return made_up_ray.put_in_place(monkeypatch)


@pytest.fixture
def executor(world: made_up_ray.World) -> Iterator[Ray]:
    """Two workers of the made-up Ray."""
    made = Ray(workers=2, retries=2)
    made.open(None, made_up_ray.SPEC)  # type: ignore[arg-type]
    yield made
    made.close()
