"""`stream=auto`: accelerate places blocks within bounds, no number changes, and what does not fit is told at once."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.cli import main
from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.evaluation import Scores
from autoprune.models.mapped import Ranges
from autoprune.objective import Fidelity, Split
from autoprune.progress import Progress
from autoprune.pruning.footprint import footprints
from autoprune.run import inferred
from autoprune.run.parts import Parts, instantiate, open_parts
from autoprune.run.pipeline import search_only
from autoprune.run.placement import Placement, placement_of
from autoprune.space import KINDS, Candidate, Plan
from autoprune.streamed import StreamedSupernet
from autoprune.supernet import Supernet
from tests import families, tiny

WORDS = ("window=16", "sequences=4", "calibration.tokens=128", "latency.mode=off", "quiet=true", "out=unused")
BLOCKS, KB = 4, 1 << 10
FIDELITY = Fidelity(Split.FITNESS, (1, 8))


@pytest.fixture(autouse=True)
def in_kilobytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of tiny models; a room of 1 MB is one of 1 KB, so `room` says how many."""
    monkeypatch.setattr(inferred, "MB", KB)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words of a run on a dense model and on a mixture."""
    folder = tmp_path_factory.mktemp("placement")
    (folder / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(blocks=BLOCKS, noise=0.1), folder / "llama")
    mixture = families.FAMILIES["qwen3_moe"]
    sizes = {"vocab_size": 256, "num_hidden_layers": BLOCKS, "moe_intermediate_size": families.FFN}
    tiny.save(mixture.make("window", **sizes), folder / "qwen3_moe")
    spaces = {"llama": "structured", "qwen3_moe": "[structured,experts]"}
    text = f"data={folder / 'text.txt'}"
    return {
        name: [f"model={folder / name}", text, f"space={space}", *WORDS] for name, space in spaces.items()
    }


def opened(*words: str) -> Parts:
    with Progress(quiet=True) as progress:
        return open_parts(compose(list(words)), progress)


def placed(*words: str) -> Placement:
    cfg = compose([*words, "stream=auto"])
    parts = [instantiate(cfg.space[name]) for name in cfg.space]
    return placement_of(cfg, torch.device("cpu"), parts)


def least(words: list[str]) -> int:
    """The smallest bound that the error names."""
    with pytest.raises(SettingError) as caught:
        placed(*words, "host_mb=1")
    return int(str(caught.value).rpartition("allowed: host_mb=")[2].removesuffix(" or more"))


def partly(words: list[str]) -> list[str]:
    """Settings with which about half of the blocks rest, and just what is needed is fed."""
    need = least(words)
    room = placed(*words, f"host_mb={need}", f"stream_mb={10 * need}").room
    return ["stream=auto", f"host_mb={need * 3 // 2}", f"stream_mb={-(-room // KB)}"]


def drawn(parts: Parts, count: int) -> list[Plan]:
    space, rng = parts.space(None), np.random.default_rng(0)
    genes: Any = space.genes
    return [
        space.decode(Candidate(tuple(int(rng.integers(len(g.options))) for g in genes))) for _ in range(count)
    ]


def scored(parts: Parts, plans: list[Plan]) -> list[Any]:
    found = parts.evaluation(parts.evaluators[:2]).evaluate(plans, FIDELITY)
    assert all(isinstance(s, Scores) for s in found)
    return [(dict(s.metrics), {n: v.tobytes() for n, v in s.per_window.items()}) for s in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_some_blocks_rest_and_some_are_read_with_the_bits_of_the_model_in_memory(
    given: dict[str, list[str]], family: str
) -> None:
    words = given[family]
    usual, parts = opened(*words), opened(*words, *partly(words))
    placement = parts.placement
    resting, read = (placement.at(where, BLOCKS) for where in ("device", "disk"))
    assert resting and read and max(resting) < min(read) and len(resting | read) == BLOCKS
    plans = drawn(usual, 5)
    assert scored(parts, plans) == scored(usual, plans)
    assert isinstance(parts.supernet, StreamedSupernet)
    feed, ranges = parts.supernet.feed, Ranges()
    assert {key[0] for key in feed.reads} == read and set(feed.reads.values()) == {1}
    for block in range(BLOCKS):
        for kind in KINDS:
            held = [ranges.hold(t) for t in feed.full[block, kind].values()]
            assert set(held) == {block in resting}, "what rests is no copy"


def test_only_blocks_that_are_read_are_let_go_of(
    given: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = opened(*given["llama"], *partly(given["llama"]))
    forgotten: list[int] = []
    monkeypatch.setattr(Ranges, "forget", lambda self, tensors: forgotten.extend(map(id, tensors)))
    parts.evaluation(parts.evaluators[:1])
    adapter: Any = parts.adapter
    full = {site: {id(t) for t in adapter.fed[site].values()} for site in adapter.fed}
    gone = {site[0] for site, names in full.items() if names <= set(forgotten)}
    assert gone <= parts.placement.at("disk", BLOCKS) and len(gone) >= 1


def test_where_all_fits_it_is_as_if_nothing_was_said(given: dict[str, list[str]]) -> None:
    parts = opened(*given["llama"], "stream=auto", "host_mb=100000")
    assert type(parts.supernet) is Supernet and parts.placement.rests and parts.adapter.fed is None
    assert parts.placement.told.startswith("placement: all 4 blocks, embeddings and head on cpu (")
    assert not [a for a in parts.cache.used if a.parent.name == "weights"]


def test_without_bounds_it_is_what_the_machine_has(
    given: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    need = least(given["llama"])
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {"cpu": (need + 512 + 1) * KB})
    found = placed(*given["llama"], f"stream_mb={need}")
    assert not found.rests and f"of {need + 1} MB" in found.told, "less memory_mb of states"
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {"cpu": 513 * KB})
    with pytest.raises(SettingError, match="stream=auto: the 1 MB that cpu has free are too few .* host_mb="):
        placed(*given["llama"])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_the_smallest_bound_that_is_named_works_and_one_less_does_not(
    given: dict[str, list[str]], family: str
) -> None:
    need = least(given[family])
    found = placed(*given[family], f"host_mb={need}", f"stream_mb={10 * need}")
    assert found.at("disk", BLOCKS) == frozenset(range(BLOCKS))
    with pytest.raises(
        SettingError, match=f"host_mb={need - 1} are too few .* allowed: host_mb={need} or more"
    ):
        placed(*given[family], f"host_mb={need - 1}", f"stream_mb={10 * need}")


def test_more_memory_lets_more_blocks_rest_within_it(given: dict[str, list[str]]) -> None:
    need, counts = least(given["llama"]), []
    room = partly(given["llama"])[2]
    for share in (8, 10, 12, 16, 24):
        found = placed(*given["llama"], f"host_mb={need * share // 8}", room)
        counts.append(len(found.at("device", BLOCKS)))
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == BLOCKS and len(set(counts)) >= 4


def test_the_map_is_accelerate_s(given: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    need = least(given["llama"])
    asked: list[Any] = []

    def map_of(model: Any, most: Any, **said: Any) -> dict[str, Any]:
        asked.append((most, {p.device.type for p in model.parameters()}))
        return {
            "around": "cpu",
            "blocks.0": "disk",
            "blocks.1": "cpu",
            "blocks.2": "disk",
            "blocks.3": "disk",
        }

    monkeypatch.setattr("accelerate.infer_auto_device_map", map_of)
    found = placed(*given["llama"], f"host_mb={need}", f"stream_mb={need}")
    assert found.blocks == {0: "disk", 1: "device", 2: "disk", 3: "disk"}
    assert asked == [({"cpu": need * KB - found.room}, {"meta"})], "no weight is read for it"


@pytest.mark.parametrize(
    ("family", "words"),
    [("llama", ()), ("llama", ("calibration.ladder=nested",)), ("qwen3_moe", ())],
)
def test_footprints_are_the_sizes_of_ladders(
    given: dict[str, list[str]], family: str, words: tuple[str, ...]
) -> None:
    parts = opened(*given[family], *words)
    found = footprints(parts.adapter, parts.options() if parts.recipe.ladder == "refit" else None)
    feed = parts.ladders.feed(1 << 30)  # type: ignore[union-attr]
    for block, kind in ((0, "attention"), (2, "ffn")):
        held = {key: feed.size(key) for key in feed.entries() if key[:2] == (block, kind)}
        print_of = found[block][KINDS.index(kind)]  # type: ignore[arg-type]
        assert print_of.whole == sum(held.values())
    assert max(f.at_work for both in found for f in both) == feed.largest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("stream=off", "host_mb=5"),
            "host_mb=5 bounds what stream=auto places, and stream=off places nothing",
        ),
        (("stream=disk", "device_mb=5"), "device_mb=5 bounds what stream=auto places"),
        (
            ("stream=auto", "device_mb=5"),
            "device_mb=5 bounds a GPU's memory, and this run's device is the CPU",
        ),
        (
            ("stream=auto", "hidden=0.5x"),
            "hidden=0.5x makes a model in memory; it does not go with stream=auto",
        ),
        (("stream=auto", "host_mb=0"), "host_mb=0 is out of range"),
        (
            ("stream=auto", "host_mb=200", "stream_mb=1"),
            "stream_mb=1 is too small: 2 sublayers of this model's ladders",
        ),
        (("stream=atuo",), "stream=atuo is unknown; did you mean 'auto'"),
    ],
)
def test_mistakes_are_one_line(
    given: dict[str, list[str]],
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*given["llama"][:-1], f"out={tmp_path / 'run'}", "device=cpu", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_without_accelerate_it_says_what_to_install(
    given: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SettingError, match=r"stream=auto needs accelerate: pip install 'autoprune\[placement\]'"
    ):
        placed(*given["llama"])


def test_a_run_says_where_weights_are_and_notes_it(
    given: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    out = f"out={tmp_path / 'run'}"
    words = [*given["llama"], *partly(given["llama"]), "tokens=512", "search=random", out, "uniform=[]"]
    with Progress(quiet=True) as progress:
        search_only(compose(words), "search", progress)
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["placement"]
    assert told.startswith("placement: embeddings and head on cpu, block") and "from disk" in told
    assert said.count(told) == 1 and said[0] == told, "before anything is read"
