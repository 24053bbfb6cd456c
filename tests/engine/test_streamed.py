"""Ladders that are not in memory: the same bits, every sublayer read once for all plans and micro-batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.evaluation import Scores
from autoprune.models.mappable import mappable
from autoprune.models.mapped import Ranges
from autoprune.objective import Fidelity, Split
from autoprune.progress import Progress
from autoprune.pruning.feed import SHARED, Feed
from autoprune.run.parts import Parts, open_parts
from autoprune.space import Plan
from autoprune.streamed import StreamedSupernet
from tests import tiny

WORDS = ("window=16", "sequences=4", "calibration.tokens=256", "latency.mode=off", "quiet=true", "out=unused")
FIDELITY = Fidelity(Split.FITNESS, (1, 12))  # three micro-batches, the last one short


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("streamed")
    (folder / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(noise=0.1), folder / "model")
    return [f"model={folder / 'model'}", f"data={folder / 'text.txt'}", *WORDS]


def opened(given: list[str], *more: str) -> Parts:
    with Progress(quiet=True) as progress:
        return open_parts(compose([*given, *more]), progress)


@pytest.fixture(scope="module")
def usual(given: list[str]) -> Parts:
    return opened(given)


@pytest.fixture
def parts(given: list[str]) -> Parts:
    return opened(given, "stream=disk")


def net(parts: Parts) -> StreamedSupernet:
    assert isinstance(parts.supernet, StreamedSupernet)
    return parts.supernet


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    """Shared prefixes, sublayers that are gone, and one plan twice."""
    base = [(2, 48), (2, 24), (2, 48)]
    found = [
        Plan.of([*base[:block], pair, *base[block + 1 :]])
        for block in range(3)
        for pair in ((1, 24), (2, 12), (0, 36), (2, 0))
    ]
    return [*found, found[0]]


def scored(parts: Parts, plans: list[Plan]) -> list[Any]:
    found = parts.evaluation(parts.evaluators[:2]).evaluate(plans, FIDELITY)
    assert all(isinstance(s, Scores) for s in found)
    return [
        (dict(s.metrics), {n: v.tobytes() for n, v in s.per_window.items()})
        for s in found
        if isinstance(s, Scores)
    ]


def test_the_bits_are_those_of_the_supernet_in_memory(usual: Parts, parts: Parts, plans: list[Plan]) -> None:
    assert scored(parts, plans) == scored(usual, plans)
    assert parts.supernet.telemetry == usual.supernet.telemetry


def test_every_sublayer_is_read_once_for_all_plans_and_micro_batches(parts: Parts, plans: list[Plan]) -> None:
    scored(parts, plans)
    feed = net(parts).feed
    assert set(feed.reads.values()) == {1}
    shared = Counter(key[:2] for key in feed.reads if key[2] == SHARED)
    assert len(shared) == 6, "attention and FFN of three blocks"
    assert not feed.reads.keys() - set(feed.entries())


def test_with_room_for_few_states_they_wait_on_disk_or_fewer_micro_batches_go_together(
    usual: Parts, given: list[str], plans: list[Plan]
) -> None:
    few = opened(given, "stream=disk")
    net(few).memory_bytes = state = 4 * 16 * 32 * 4
    assert net(few).together(len(plans), tiny.token_ids((4, 16))) == 1
    assert scored(few, plans) == scored(usual, plans)
    assert net(few).spilled > 3 * state
    assert set(net(few).feed.reads.values()) == {3}, "once for each of three micro-batches"
    net(few).memory_bytes = 4 * len(plans) * state
    assert net(few).together(len(plans), tiny.token_ids((4, 16))) == 2


def test_what_is_held_stays_within_the_bound(parts: Parts, plans: list[Plan]) -> None:
    feed = net(parts).feed
    feed._room = room = 2 * feed.largest
    most = 0

    class Watching(dict[str, Tensor]):
        pass

    read = feed._copied

    def watched(source: Any) -> Any:
        nonlocal most
        most = max(most, feed._bytes())
        return read(source)

    feed._copied = watched  # type: ignore[method-assign]
    scored(parts, plans)
    assert 0 < most <= room


def test_what_was_used_longest_ago_makes_room() -> None:
    sites = [(block, "ffn") for block in range(3)]
    feed = Feed({site: {"up": torch.ones(8)} for site in sites}, {}, room=2 * 32)  # type: ignore[misc]
    for block in (0, 1, 0, 2, 0, 1):
        feed.get((block, "ffn", SHARED))
        assert feed._bytes() <= 2 * 32
    assert [feed.reads[block, "ffn", SHARED] for block in range(3)] == [1, 2, 1]


def test_the_thread_reads_ahead(parts: Parts, plans: list[Plan]) -> None:
    feed, asked = net(parts).feed, []
    run = parts.adapter.run_sublayer

    def noting(block: int, kind: Any, *given: Any) -> Any:
        asked.append(any(key[0] * 2 + (key[1] == "ffn") > block * 2 + (kind == "ffn") for key in feed._held))
        return run(block, kind, *given)

    parts.adapter.run_sublayer = noting  # type: ignore[method-assign, assignment]
    scored(parts, plans)
    assert any(asked), "while a sublayer runs, the next is there or on its way"


def test_weights_are_read_when_somebody_asks_for_one_sublayer(usual: Parts, parts: Parts) -> None:
    plan = Plan.of([(1, 24)] * 3)
    ours, theirs = (p.ladders.weights(1, plan.sublayers[3]) for p in (parts, usual))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]) and ours[name].stride() == theirs[name].stride()
        assert not Ranges().hold(ours[name])


def test_a_checkpoint_of_halves_is_copied_once_and_then_mapped(given: list[str], tmp_path: Path) -> None:
    model = tiny.llama(noise=0.1)
    tiny.save(model.to(torch.bfloat16), tmp_path / "halves")
    words = [f"model={tmp_path / 'halves'}", *given[1:]]
    usual, parts = opened(words), opened(words, "stream=disk")
    tensors = parts.adapter.weights(1, "ffn")
    assert all(Ranges().hold(t) for t in tensors.values()) and tensors["up"].dtype is torch.float32
    assert usual.digests == parts.digests
    assert mappable(tmp_path / "halves", parts.cache) == mappable(tmp_path / "halves", parts.cache)
    plan = [Plan.of([(1, 24)] * 3)]
    assert scored(parts, plan) == scored(usual, plan)


def test_forgotten_tensors_are_read_again_from_their_file(parts: Parts) -> None:
    weights = parts.adapter.weights(0, "ffn")
    before = {name: tensor.clone() for name, tensor in weights.items()}
    Ranges().forget(weights.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())
    own = torch.ones(1 << 20)
    Ranges().forget([own])
    assert bool((own == 1).all()), "what no file holds must stay"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stream=dsik", "stream=dsik is unknown; did you mean 'disk'"),
        ("stream_mb=0", "stream_mb=0 is out of range"),
    ],
)
def test_settings(given: list[str], word: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        opened(given, word)


def test_too_little_room_is_told_with_what_is_needed(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.run import placement, streaming

    monkeypatch.setattr(placement, "SUBLAYERS", 1 << 20)
    with pytest.raises(
        SettingError, match="stream_mb=1024 is too small: .* of this model's ladders take .* MB"
    ):
        streaming.supernet_of(parts.cfg, parts.placement, parts.adapter, parts.ladders, parts.ladders)  # type: ignore[arg-type]
