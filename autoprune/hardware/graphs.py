"""CUDA graphs: what a model asks of a GPU is recorded once and replayed, without the time that asking takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from autoprune.hardware.timing import Call

WARM = 2  # rounds before recording: libraries allocate and choose in the first


class Replay:
    """Calls that were recorded one after another, replayed in that order, one a call, then again from the first."""

    def __init__(self, call: Call, graphs: tuple[torch.cuda.CUDAGraph, ...], held: object) -> None:
        self._alive = call, held  # graphs read memory by address and keep none of it
        self._graphs, self.done = graphs, 0

    def __call__(self) -> None:
        """Replay the next one."""
        self._graphs[self.done].replay()
        self.done = (self.done + 1) % len(self._graphs)


def replayed(makers: Mapping[str, Callable[[], Call]], steps: int, device: str) -> dict[str, Call]:
    """What every maker makes, on a GPU as replays of `steps` calls in turn; as it is where one cannot be recorded.

    All or none: what is compared is timed alike. On other devices nothing is recorded.
    """
    if torch.device(device).type == "cuda":
        found: dict[str, Call] = {}
        for name, make in makers.items():
            replay = _recorded(make(), steps, device)
            if replay is None:
                break
            found[name] = replay
        else:
            return found
    return {name: make() for name, make in makers.items()}


def _recorded(call: Call, steps: int, device: str) -> Replay | None:
    """None where the driver, a library or the model refuses; what was recorded until then is dropped."""
    graphs = []
    try:
        with torch.cuda.device(device):
            _warm(call, steps)
            held: object = getattr(call, "held", tuple)()
            pool = torch.cuda.graph_pool_handle()
            for _ in range(steps):
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], pool=pool):
                    call()
            torch.cuda.synchronize()
    except RuntimeError:  # torch's error of CUDA is one, too
        return None
    return Replay(call, tuple(graphs), held)


def _warm(call: Call, steps: int) -> None:
    """On a stream of its own, as recording wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM * steps):
            call()
    torch.cuda.current_stream().wait_stream(stream)
