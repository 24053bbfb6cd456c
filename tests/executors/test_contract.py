"""Serial and Ray against the executors' contract; and one ledger, whoever evaluates."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import LedgerError
from autoprune.evaluation import Evaluation
from autoprune.executors.base import Opened
from autoprune.executors.ray import Ray
from autoprune.executors.serial import Serial
from autoprune.executors.worker import Worker
from autoprune.progress import Progress
from autoprune.run.remote import spec_of
from autoprune.space import Plan
from autoprune.study import SupernetSpec
from tests.executor_contract import ExecutorContract

STATUS = 9  # of the ordered columns


@pytest.fixture(scope="module")
def evaluation(bench: Any) -> Evaluation:
    found: Evaluation = bench.evaluation()
    return found


def opened(executor: Opened, bench: Any) -> Opened:
    executor.open(bench.evaluation(), bench.spec)
    return executor


class Reopens:
    """A phase with a supernet of its own opens the executor again."""

    def test_opened_again_it_evaluates_with_the_other_supernet(
        self, executor: Opened, evaluation: Evaluation, bench: Any, plans: list[Plan]
    ) -> None:
        wanted = SupernetSpec({"block1.ffn.width": (12, 24)}, plans[1])
        other = bench.parts.rebuilt(wanted, Progress(quiet=True))
        theirs = other.evaluation(other.evaluators[:1])
        fidelity = ExecutorContract.FIDELITIES[0]
        for opens, spec, expected in (
            (theirs, spec_of(other, wanted), theirs.evaluate(plans[:-2], fidelity)),
            (bench.evaluation(), bench.spec, evaluation.evaluate(plans[:-2], fidelity)),
        ):
            executor.open(opens, spec)
            executor.submit(ExecutorContract.jobs(plans[:-2], fidelity))
            found = sorted(executor.results(), key=lambda r: r.proposal.id)
            assert all(ExecutorContract.same(r, e) for r, e in zip(found, expected, strict=True))


class TestSerial(ExecutorContract, Reopens):
    """In this process."""

    @pytest.fixture
    def executor(self, bench: Any) -> Opened:
        return opened(Serial(), bench)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all executors of this file."""
    import ray

    from autoprune.executors.cluster import QUIET
    from autoprune.executors.local import STORE

    os.environ.update(QUIET)
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two(cluster: None, bench: Any) -> Iterator[Opened]:
    executor = opened(Ray(workers=2), bench)
    yield executor
    executor.close()


@pytest.mark.ray
class TestRay(ExecutorContract, Reopens):
    """Two workers."""

    @pytest.fixture
    def executor(self, two: Opened) -> Opened:
        return two

    def test_the_ledger_is_that_of_the_serial_executor(
        self, two: Opened, bench: Any, undisturbed: list[tuple[Any, ...]], tmp_path: Path
    ) -> None:
        rows = bench.study(two, tmp_path)
        assert rows == undisturbed
        assert {row[STATUS] for row in rows} == {"ok", "failed"}, "failures are part of what must be equal"

    def test_ladders_are_mapped_not_copied(self, two: Opened, bench: Any) -> None:
        from autoprune.bench.processes import workers

        pids = workers(os.getpid())
        assert len(pids) == 2
        ladders = str(bench.parts.ladder_folder)
        deadline = time.monotonic() + 120  # one worker may have done everything while the other still loads
        while not all(ladders in Path(f"/proc/{pid}/maps").read_text() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_workers_start_with_an_allocator_that_keeps_memory(self, two: Opened) -> None:
        from autoprune.bench.processes import workers
        from autoprune.executors.cluster import ALLOCATOR

        deadline = time.monotonic() + 120
        while len(pids := workers(os.getpid())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for pid in pids:  # glibc reads them when a process starts: setting them later does nothing
            started_with = Path(f"/proc/{pid}/environ").read_text().split("\0")
            assert {f"{name}={value}" for name, value in ALLOCATOR.items()} <= set(started_with)


@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="other C libraries do not read these")
def test_the_allocator_s_settings_keep_memory() -> None:
    from autoprune.executors.cluster import ALLOCATOR

    assert faults(ALLOCATOR) < 0.2 * faults({})


def faults(environment: dict[str, str]) -> int:
    """Page faults of twenty times three arrays of 16 MB, gone before the next three."""
    code = (
        "import ctypes, resource\n"
        "c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p\n"
        "for _ in range(20):\n"
        "    arrays = [ctypes.c_void_p(c.malloc(16 << 20)) for _ in range(3)]\n"
        "    for array in arrays: ctypes.memset(array, 1, 16 << 20)\n"
        "    for array in arrays: c.free(array)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return int(subprocess.check_output([sys.executable, "-c", code], env=clean | environment))


@pytest.mark.ray
def test_one_worker_comes_to_the_same_ledger(
    cluster: None, bench: Any, undisturbed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    executor = opened(Ray(workers=1), bench)
    assert bench.study(executor, tmp_path) == undisturbed
    executor.close()


@pytest.mark.parametrize("name", ["model", "corpus", "ladders"])
def test_a_worker_that_finds_something_else_refuses(bench: Any, name: str) -> None:
    other = dataclasses.replace(bench.spec, digests={**bench.spec.digests, name: "0123"})
    with pytest.raises(LedgerError, match=f"a worker found another {name} .* than the run's .0123."):
        Worker().open(other)
