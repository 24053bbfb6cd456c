"""The table of `autoprune bench kernels --threads N`: what the same products gain from more threads."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from autoprune.bench.kernels import cold, head, one_token_layers, reading, sizes_of, timed
from autoprune.errors import MeasurementError

STREAM = "reading alone"


def threads_lines(options: argparse.Namespace) -> list[str]:
    """One token on one thread and on `options.threads`; MeasurementError where the kernels do not get so many."""
    from autoprune.kernels import native

    wanted = options.threads
    if (came := torch.ops.autoprune.team()) != wanted:
        raise MeasurementError(
            f"the kernels run on {came} of {wanted} threads: OMP_THREAD_LIMIT is in their way"
        )
    lines = [f"{native.instructions()}; 1 and {came} threads of the kernels; torch {torch.__version__}.", ""]
    lines += [head("size", "matrix", "us on 1", f"us on {wanted}", "times as fast", "95 % interval")]
    for rows, columns in sizes_of(options.sizes):
        x = torch.randn(1, columns).to(torch.bfloat16)
        calls = {name: cold(layer, x) for name, layer in one_token_layers(rows, columns).items()}
        calls[STREAM] = reading()
        pairs = {(name, count): on(count, call) for name, call in calls.items() for count in (1, wanted)}
        found = timed({f"{name} on {count}": call for (name, count), call in pairs.items()}, options)
        for name in calls:
            one, several = found[f"{name} on 1"], found[f"{name} on {wanted}"]
            gain = one.over(several)
            low, high = gain.interval
            lines.append(
                f"| {rows}x{columns} | {name} | {one.median * 1e6:.0f} | {several.median * 1e6:.0f} | "
                f"{gain.median:.2f} | {low:.2f} to {high:.2f} |"
            )
    return lines


def on(count: int, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call on so many threads of torch, by which the kernels go."""

    def counted() -> Any:
        torch.set_num_threads(count)
        return call()

    return counted
