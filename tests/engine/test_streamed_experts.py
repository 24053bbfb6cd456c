"""Mixtures of experts that are not in memory: stacks in a file, the same bits, only the experts that a plan keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autoprune.cache import Cache
from autoprune.config import compose
from autoprune.errors import SettingError, UnsupportedModelError
from autoprune.evaluation import Scores
from autoprune.models import mappable
from autoprune.models.mapped import Ranges
from autoprune.objective import Fidelity, Split
from autoprune.progress import Progress
from autoprune.pruning.feed import SHARED, Feed
from autoprune.run.parts import Parts, open_parts
from autoprune.run.streaming import SHAPES
from autoprune.space import KINDS, Candidate, OptionGene, Plan
from autoprune.streamed import StreamedSupernet
from tests import families, tiny

WORDS = ("window=16", "sequences=4", "calibration.tokens=128", "latency.mode=off", "quiet=true", "out=unused")
FIDELITY = Fidelity(Split.FITNESS, (1, 8))
BLOCKS = 2
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
SPACES = {
    "kept": ["space=[structured,experts]"],
    "merged": ["space=[experts,merging]"],
    "masked": ["space=[experts,sparsity]", "calibration.mask=wanda"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words of a run by family."""
    folder = tmp_path_factory.mktemp("mixtures")
    (folder / "text.txt").write_text(tiny.text(40_000))
    for name in MIXTURES:
        family = families.FAMILIES[name]
        width = "intermediate_size" if "intermediate_size" in family.sizes else "moe_intermediate_size"
        sizes = {"vocab_size": 256, "num_hidden_layers": BLOCKS, width: families.FFN}
        tiny.save(family.make(next(iter(family.variants)), **sizes), folder / name)
    return {name: [f"model={folder / name}", f"data={folder / 'text.txt'}", *WORDS] for name in MIXTURES}


def opened(*words: str) -> Parts:
    with Progress(quiet=True) as progress:
        return open_parts(compose(list(words)), progress)


def drawn(parts: Parts, count: int, most: int | None = None) -> list[Plan]:
    """Plans of the run's space; with at most so many experts."""
    space, rng = parts.space(None), np.random.default_rng(0)

    def value(gene: Any) -> Any:
        if not isinstance(gene, OptionGene):
            return tuple(np.round(rng.uniform(-1, 1, int(np.prod(gene.shape))), 3).tolist())
        fits = [i for i, o in enumerate(gene.options) if gene.setting != "experts" or not most or o <= most]
        return int(rng.choice(fits))

    return [space.decode(Candidate(tuple(map(value, space.genes)))) for _ in range(count)]


def scored(parts: Parts, plans: list[Plan]) -> list[Any]:
    found = parts.evaluation(parts.evaluators[:2]).evaluate(plans, FIDELITY)
    assert all(isinstance(s, Scores) for s in found)
    return [(dict(s.metrics), {n: v.tobytes() for n, v in s.per_window.items()}) for s in found]  # type: ignore[union-attr]


def feed_of(parts: Parts) -> Feed:
    assert isinstance(parts.supernet, StreamedSupernet)
    return parts.supernet.feed


@pytest.mark.parametrize(
    ("family", "space"),
    [*((name, "kept") for name in MIXTURES), ("qwen2_moe", "merged"), ("mixtral", "masked")],
)
def test_the_bits_are_those_of_the_mixture_in_memory(
    given: dict[str, list[str]], family: str, space: str
) -> None:
    words = [*given[family], *SPACES[space]]
    usual, parts = opened(*words), opened(*words, "stream=disk")
    plans = drawn(usual, 5)
    assert all(Ranges().hold(t) for kind in KINDS for t in parts.adapter.weights(1, kind).values())
    assert usual.digests == parts.digests
    assert scored(parts, plans) == scored(usual, plans)
    assert set(feed_of(parts).reads.values()) == {1}, "once for all plans and micro-batches"


def test_only_experts_that_some_plan_keeps_are_read(given: dict[str, list[str]]) -> None:
    parts = opened(*given["qwen3_moe"], *SPACES["kept"], "stream=disk")
    feed, few = feed_of(parts), drawn(parts, 5, most=3)
    scored(parts, few)
    whole = sum(feed.size(key) for key in feed.reads)
    kept = sum(max(int(p.at(b, "ffn").get("experts")) for p in few) for b in range(BLOCKS))
    assert kept <= 3 * BLOCKS
    assert feed.bytes_read < 0.65 * whole
    dense = parts.dense_plan()
    assert scored(parts, [dense]) == scored(opened(*given["qwen3_moe"], *SPACES["kept"]), [dense]), (
        "all again"
    )


@pytest.mark.parametrize("space", ["merged", "masked"])
def test_what_is_made_of_all_experts_reads_all(given: dict[str, list[str]], space: str) -> None:
    parts = opened(*given["qwen3_moe"], *SPACES[space], "stream=disk")
    feed = feed_of(parts)
    scored(parts, [p for p in drawn(parts, 5, most=3)])
    assert feed.bytes_read == sum(feed.size(key) for key in feed.reads)


def test_a_batch_that_ends_early_leaves_all_experts_to_the_next(given: dict[str, list[str]]) -> None:
    words = [*given["olmoe"], *SPACES["kept"]]
    parts, usual = opened(*words, "stream=disk"), opened(*words)
    few, run = drawn(parts, 4, most=3), parts.adapter.run_sublayer

    def ends(block: int, kind: Any, *given: Any) -> Any:
        if (block, kind) == (1, "ffn"):
            raise RuntimeError("no more")
        return run(block, kind, *given)

    parts.adapter.run_sublayer = ends  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="no more"):
        parts.supernet.run(few, tiny.token_ids((2, 16)), lambda index, logits: None)
    parts.adapter.run_sublayer = run  # type: ignore[method-assign]
    for block in range(BLOCKS):
        plan = parts.dense_plan().at(block, "ffn")
        ours, theirs = (p.ladders.weights(block, plan) for p in (parts, usual))
        assert all(torch.equal(ours[n], theirs[n]) and ours[n].stride() == theirs[n].stride() for n in theirs)


def test_merged_experts_are_held_of_one_block_and_no_more_than_a_sublayer(
    given: dict[str, list[str]],
) -> None:
    parts = opened(*given["mixtral"], *SPACES["merged"], "stream=disk")
    scored(parts, drawn(parts, 5))
    held: Any = parts.ladders._merged  # type: ignore[union-attr]
    assert {key[0] for key in held._held} == {BLOCKS - 1}
    assert held._bytes <= feed_of(parts).largest


def test_libraries_keep_few_shapes_where_a_mixture_is_streamed(
    given: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SHAPES:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    opened(*given["olmoe"])
    assert not set(SHAPES) & set(os.environ), "in memory they are left alone"
    opened(*given["olmoe"], "stream=disk")
    assert {os.environ[name] for name in SHAPES} == {"64"}
    monkeypatch.setenv(SHAPES[0], "7")
    opened(*given["olmoe"], "stream=disk")
    assert os.environ[SHAPES[0]] == "7", "who sets it himself has his way"


def test_with_fewer_experts_wanted_they_are_read_and_with_more_read_again() -> None:
    whole = {"up": torch.arange(24.0).view(4, 3, 2), "norm": torch.ones(4)}
    feed = Feed({(0, "ffn"): whole}, {}, 1 << 10, stacked=frozenset({"up"}))
    with feed.of_a_batch():
        feed.first((0, "ffn"), 2)
        got = feed.get((0, "ffn", SHARED))
        assert torch.equal(got["up"], whole["up"][:2]) and len(got["norm"]) == 4
        feed.first((0, "ffn"), 3)
        assert len(feed.get((0, "ffn", SHARED))["up"]) == 3
    assert len(feed.get((0, "ffn", SHARED))["up"]) == 4
    assert feed.reads[0, "ffn", SHARED] == 3 and feed.bytes_read == 9 * 24 + 3 * 16


@contextmanager
def no_stacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(mappable, "STACKS", {})
        yield


def test_a_model_that_is_put_together_while_it_loads_is_refused(
    given: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        no_stacks(monkeypatch),
        pytest.raises(SettingError, match="gate of block 0 .* is made anew when it is loaded"),
    ):
        opened(*given["qwen3_moe"], "stream=disk")


def test_the_copy_is_written_in_parts_that_transformers_reads(
    given: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(given["mixtral"][0].removeprefix("model="))
    monkeypatch.setattr(mappable, "SHARD", 1 << 16)
    copy = mappable.mappable(source, Cache(tmp_path))
    files = sorted(copy.glob("*.safetensors"))
    tensors = {name: t for file in files for name, t in load_file(file).items()}
    stored = load_file(source / "model.safetensors")
    assert len(files) > 3 and copy == mappable.mappable(source, Cache(tmp_path))
    assert mappable.mappable(copy, Cache(tmp_path)) == copy, "which can be mapped"
    up = tensors["model.layers.1.mlp.experts.gate_up_proj"]
    first, second = (stored[f"model.layers.1.block_sparse_moe.experts.4.{n}.weight"] for n in ("w1", "w3"))
    assert torch.equal(up[4], torch.cat((first, second)))
    assert torch.equal(tensors["lm_head.weight"], stored["lm_head.weight"])


def test_values_that_cannot_be_mapped_are_named(given: dict[str, list[str]], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"odd": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="odd is stored as F8_E4M3"):
        mappable.mappable(tmp_path, Cache(tmp_path / "cache"))
