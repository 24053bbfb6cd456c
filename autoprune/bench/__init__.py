"""Benchmarks: each remakes a committed table with one command, `autoprune bench NAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def _search(args: Sequence[str]) -> None:
    from autoprune.bench import search

    search.main(args)


def _targets(args: Sequence[str]) -> None:
    from autoprune.bench import targets

    targets.main(args)


def _sharing(args: Sequence[str]) -> None:
    from autoprune.bench import sharing

    sharing.main(args)


def _ladders(args: Sequence[str]) -> None:
    from autoprune.bench import ladders

    ladders.main(args)


def _latency(args: Sequence[str]) -> None:
    from autoprune.bench import latency

    latency.main(args)


def _workers(args: Sequence[str]) -> None:
    from autoprune.bench import workers

    workers.main(args)


def _crash(args: Sequence[str]) -> None:
    from autoprune.bench import crash

    crash.main(args)


def _recovery(args: Sequence[str]) -> None:
    from autoprune.bench import recovery

    recovery.main(args)


BENCHMARKS: dict[str, Callable[[Sequence[str]], None]] = {
    "search": _search,
    "targets": _targets,
    "sharing": _sharing,
    "ladders": _ladders,
    "latency": _latency,
    "workers": _workers,
    "crash": _crash,
    "recovery": _recovery,
}


def run_benchmark(name: str, args: Sequence[str]) -> None:
    """Run one benchmark with its own arguments."""
    BENCHMARKS[name](args)
