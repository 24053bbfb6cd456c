"""Masked spaces in a run: the same masks in every process, named by a digest, searched and exported end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoprune.config import compose
from autoprune.errors import LedgerError, SettingError
from autoprune.export.packed import load_packed
from autoprune.objective import Constraint, Fidelity, Objective, Split
from autoprune.progress import Progress
from autoprune.pruning.masks.ladders import MaskedLadders
from autoprune.run import pipeline
from autoprune.run.parts import Parts, open_parts, search_evaluation
from autoprune.run.remote import evaluation, spec_of
from autoprune.shape import full_plan
from autoprune.space import Plan, SublayerPlan
from autoprune.study import SupernetSpec
from tests import tiny

QUIET = Progress(quiet=True)
WORDS = (
    "window=16",
    "sequences=4",
    "calibration.tokens=512",
    "latency.mode=off",
    "quiet=true",
    "memory_mb=1",
)
SPACE = (
    "space=[structured,sparsity]",
    "space.structured.ffn_options=3",
    "space.sparsity.densities=[25,50,100]",
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sparsity")
    (folder / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(blocks=2, noise=0.3), folder / "model")
    return [f"model={folder / 'model'}", f"data={folder / 'text.txt'}", *WORDS, *SPACE]


@pytest.fixture(scope="module")
def parts(given: list[str]) -> Parts:
    return open_parts(compose([*given, "out=unused"]), QUIET)


def plans(parts: Parts) -> list[Plan]:
    space, rng = parts.space(None), np.random.default_rng(0)
    limit = space.cost(space.dense)["bytes"] * 0.6
    return [space.decode(space.repair(space.dense, [Constraint("bytes", limit)], rng)) for _ in range(6)]


def test_workers_make_the_same_masks(parts: Parts) -> None:
    there = evaluation(spec_of(parts))
    here, fidelity = search_evaluation(parts, [Objective("kl")]), Fidelity(Split.FITNESS, (0, 4))
    ours, theirs = (e.evaluate(plans(parts), fidelity) for e in (here, there))
    assert [s.metrics for s in ours] == [s.metrics for s in theirs]  # type: ignore[union-attr]
    assert len({s.metrics["kl"] for s in ours}) == len({p.key for p in plans(parts)}) > 3  # type: ignore[union-attr]


def test_another_method_is_another_run(parts: Parts, given: list[str]) -> None:
    other = open_parts(compose([*given, "calibration.mask=wanda", "out=unused"]), QUIET)
    assert parts.digests["masks"].startswith("sparsegpt-") and other.digests["masks"].startswith("wanda-")
    spec = spec_of(parts)
    spec.settings["calibration"]["mask"] = "wanda"  # type: ignore[index]
    with pytest.raises(LedgerError, match="found another masks"):
        evaluation(spec)


def test_the_dense_plan_has_all_settings_at_full(parts: Parts) -> None:
    dense = parts.dense_plan()
    assert dense.unmasked == full_plan(parts.adapter.shape) and dense != dense.unmasked
    assert dense == parts.space(None).decode(parts.space(None).dense)


def test_rebuilt_ladders_are_masked_too(parts: Parts) -> None:
    spec = SupernetSpec({"block1.ffn.width": (9, 15, 21)}, Plan.of([(1, 12), (2, 15)]))
    ladders = parts.rebuilt(spec, QUIET).ladders
    assert isinstance(ladders, MaskedLadders)
    found = ladders.weights(0, SublayerPlan.of("ffn", width=24, **{"up.unstructured": 50}))
    assert int((found["up"] == 0).sum()) == found["up"].numel() // 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibration.mask=wnda"], "calibration.mask=wnda is unknown; did you mean 'wanda'"),
        (
            ["space.sparsity.pattern=5", "space.sparsity.densities=null"],
            "space.sparsity.pattern=5 does not fit q: 32 inputs are no multiple of 5",
        ),
        (["space.sparsity.densities=[]"], r"space.sparsity.densities=\[\]: they are per cent"),
        (["space.sparsity.matrices=[w]"], "space.sparsity.matrices holds 'w', which is unknown"),
    ],
)
def test_mistakes_are_told_in_one_line(given: list[str], words: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        open_parts(compose([*given, *words, "out=unused"]), QUIET)
    assert "\n" not in str(caught.value)


def test_a_joint_search_ends_in_a_packed_checkpoint(given: list[str], tmp_path: Path) -> None:
    words = ["constraints={bytes: 0.6x}", "objectives=[kl,bytes]", "search=nsga2", "search.windows=2"]
    words += ["search.population=8", "tokens=1500", "selection_windows=4", "test_windows=4", "finalists=4"]
    cfg = compose([*given, *words, "uniform=[0.5]", f"out={tmp_path / 'run'}"])
    run = pipeline.start(cfg, "autoprune …", QUIET)
    best, config = run / "best", json.loads((run / "best" / "config.json").read_text())
    packed, plan = load_packed(best), Plan.from_json((best / "autoprune_plan.json").read_text())
    assert packed and packed.keys() == config["autoprune_masks"].keys() and plan != plan.unmasked
    assert "## Masks" in (best / "README.md").read_text()
    from autoprune.report import leaderboard

    frame = leaderboard.read(run)
    found = frame[frame["name"] == "front"]
    assert len(found) and bool((found["bytes_ratio"] <= 0.6).all()) and bool((frame["kl_test"] >= 0).all())
