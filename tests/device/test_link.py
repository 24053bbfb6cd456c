"""What is fed to a GPU goes by a stream of its own, and the work waits for it; on the CPU it is a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from autoprune.pruning import link
from autoprune.pruning.feed import SHARED, DenseBlocks
from tests.made_up_gpu import GPU, OnGpu, made_up_gpu


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams and events are told, with no GPU behind them."""
    found: list[str] = []

    class Stream:
        def __init__(self, device: torch.device, name: str = "side") -> None:
            self.name = name

        def wait_event(self, event: Any) -> None:
            found.append(f"{self.name} waits")

    class Event:
        def record(self, stream: Stream) -> None:
            found.append(f"event on {stream.name}")

    @contextmanager
    def at(stream: Stream) -> Iterator[None]:
        found.append(f"on {stream.name}")
        yield
        found.append(f"off {stream.name}")

    work = Stream(torch.device("cuda"), "work")
    for name, made in (("Stream", Stream), ("Event", Event), ("stream", at)):
        monkeypatch.setattr(torch.cuda, name, made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(OnGpu, "record_stream", lambda t, stream: found.append(f"kept by {stream.name}"))
    monkeypatch.setattr(link, "pinned", lambda t: found.append("pinned") or t)
    return found


def to_a_gpu() -> link.Link:
    """The made-up GPU's, by the way that those of CUDA go."""
    found = link.Link(GPU)
    found._stream = link.Link(torch.device("cuda"))._stream
    return found


def test_the_work_waits_for_what_a_stream_of_its_own_brings(told: list[str]) -> None:
    with made_up_gpu():
        sent = to_a_gpu().send({"up": torch.zeros(3, 4).mT})
        assert told == ["on side", "pinned", "event on side", "off side"]
        got = sent.received()["up"]
    assert told[4:] == ["work waits", "kept by work"]
    assert got.device == GPU and got.stride() == (1, 4)


def test_nothing_to_send_is_nothing_to_wait_for(told: list[str]) -> None:
    assert to_a_gpu().send({}).received() == {} and "work waits" not in told


def test_on_the_cpu_it_is_a_copy_with_the_same_strides() -> None:
    source = torch.arange(12.0).view(3, 4).mT
    got = link.Link(torch.device("cpu")).send({"up": source}).received()["up"]
    assert torch.equal(got, source) and got.stride() == source.stride()
    assert got.data_ptr() != source.data_ptr()


def test_dense_blocks_are_read_ahead_as_far_as_there_is_room() -> None:
    full: Any = {(block, "ffn"): {"up": torch.full((4,), float(block))} for block in range(4)}
    dense = DenseBlocks(full, 3 * 16, torch.device("cpu"))
    assert dense[0, "ffn"]["up"].tolist() == [0.0] * 4
    assert set(dense._feed.reads) == {(block, "ffn", SHARED) for block in range(3)}
    assert [float(dense[site]["up"][0]) for site in dense] == [0.0, 1.0, 2.0, 3.0]
    assert set(dense._feed.reads.values()) == {1}
