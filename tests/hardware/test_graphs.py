"""CUDA graphs with a stand-in for torch's: what is recorded, what is replayed, and what happens where that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune.hardware import graphs, timing, workload
from autoprune.hardware.graphs import WARM, Replay, replayed
from autoprune.hardware.workload import Workload, sample_models
from tests import tiny


class Cuda:
    """Records which calls run while a graph is open, and refuses where it is told to."""

    def __init__(self) -> None:
        self.open: Any = None
        self.replays: list[int] = []
        self.made = 0
        self.refuses: Callable[[], bool] = lambda: False

    def graph_class(self) -> Any:
        found, self.made = SimpleNamespace(number=self.made, calls=0), self.made + 1
        found.replay = lambda: self.replays.append(found.number)
        return found

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        assert pool == "pool"
        if self.refuses():
            raise RuntimeError("operation not permitted when stream is capturing")
        self.open = graph
        yield
        self.open = None


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": fake.graph_class,
        "graph": fake.graph,
        "graph_pool_handle": lambda: "pool",
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda of: nullcontext(),
        "device": lambda of: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return fake


def counting(cuda: Cuda) -> Callable[[], None]:
    def call() -> None:
        if cuda.open is not None:
            cuda.open.calls += 1
        call.runs += 1  # type: ignore[attr-defined]

    call.runs = 0  # type: ignore[attr-defined]
    return call


def test_calls_are_recorded_once_and_replayed_in_turn(cuda: Cuda) -> None:
    call = counting(cuda)
    replay = replayed({"a": lambda: call}, 3, "cuda:0")["a"]
    assert isinstance(replay, Replay) and cuda.made == 3
    assert call.runs == 3 * WARM + 3 and all(g.calls == 1 for g in replay._graphs)  # type: ignore[attr-defined]
    for _ in range(7):
        replay()
    assert cuda.replays == [0, 1, 2, 0, 1, 2, 0] and call.runs == 3 * WARM + 3  # type: ignore[attr-defined]


def test_where_one_cannot_be_recorded_none_is(cuda: Cuda) -> None:
    calls = [counting(cuda) for _ in range(4)]
    given = iter(calls)
    makers = {"a": lambda: next(given), "b": lambda: next(given)}
    cuda.refuses = lambda: cuda.made > 1
    found = replayed(makers, 1, "cuda")
    assert list(found.values()) == calls[2:], "a call that was half recorded is not gone on with"
    found["a"]()
    assert calls[2].runs == 1 and not cuda.replays  # type: ignore[attr-defined]


def test_other_devices_record_nothing(cuda: Cuda) -> None:
    call = counting(cuda)
    assert replayed({"a": lambda: call}, 2, "cpu") == {"a": call} and not cuda.made
    assert call.runs == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("refused", [False, True])
def test_models_are_timed_through_graphs_and_the_samples_say_so(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """Decoding is refused or not; prompts are recorded always. All runs on the CPU, as if it were a GPU."""
    timed: dict[str, Any] = {}

    def interleaved(items: Any, *rest: Any, device: str, **more: Any) -> Any:
        timed.update(items)
        for call in items.values():
            for _ in range(5):
                call()
        return {name: timing.Samples((1.0,)) for name in items}

    monkeypatch.setattr(workload, "_one_device", lambda models: "cuda")
    monkeypatch.setattr(workload, "interleaved", interleaved)
    steps, models = 3, {"one": tiny.llama(1), "two": tiny.llama(2)}
    cuda.refuses = lambda: refused and cuda.made > len(models)
    work = Workload(prefill_tokens=6, context=5, decode_steps=steps)
    found = sample_models(models, work)
    for of in found.values():
        assert (of["prefill"].graph, of["decode"].graph) == (True, not refused)
    replay = timed["decode of one"]
    assert isinstance(replay, Replay) is not refused
    if not refused:
        decode, held = replay._alive
        assert [t.shape[-2] for t in held] == [5 + steps] * 2, "keys and values that the first step reads"
        assert decode.cache.get_seq_length() == 5 + steps and replay.done == 5 % steps
        assert cuda.made == len(models) * (1 + steps)


def test_the_library_s_own_objects_are_those_that_are_used() -> None:
    """Names and arguments of what the stand-in stands for."""
    for name in (
        "CUDAGraph",
        "graph",
        "graph_pool_handle",
        "Stream",
        "current_stream",
        "stream",
        "synchronize",
    ):
        assert callable(getattr(torch.cuda, name)), name
    assert "pool" in torch.cuda.graph.__init__.__code__.co_varnames
    assert graphs.WARM > 0
