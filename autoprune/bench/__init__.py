"""Benchmarks: each remakes a committed table with one command, `autoprune bench NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

BENCHMARKS = (
    "search",
    "targets",
    "sharing",
    "ladders",
    "latency",
    "workers",
    "crash",
    "recovery",
    "tabular",
    "enumerate",
    "searchers",
    "stage",
    "ablation",
    "proxies",
    "kernels",
    "decode",
    "gpu",
    "experts",
    "joint",
    "cache",
    "criteria",
    "tokens",
    "allocators",
    "eep",
    "scale",
    "prefill",
    "prompts",
    "divergence",
    "tasks",
    "streaming",
    "hidden",
    "rounds",
    "precision",
)  # modules of this package with a `main(args)`


def run_benchmark(name: str, args: Sequence[str]) -> None:
    """Run one benchmark with its own arguments."""
    import_module(f"autoprune.bench.{name}").main(args)
