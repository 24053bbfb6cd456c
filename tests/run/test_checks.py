"""The self-check finds a stream or ladders that are wrong, and a disk that is too small."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.config import compose
from autoprune.errors import MeasurementError, SettingError, UnsupportedModelError
from autoprune.objective import Fidelity, Objective, Split
from autoprune.progress import Progress
from autoprune.run import checks
from autoprune.run.checks import check_dense, estimate
from autoprune.run.parts import Parts, open_parts, search_evaluation, search_evaluators
from autoprune.run.stream import check_stream
from tests import tiny

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """The parts of a small run."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(blocks=2, noise=0.1), folder / "model")
    words = ["window=32", "calibration.tokens=256", "latency.mode=off", "evaluator=[divergence,perplexity]"]
    cfg = compose([f"model={folder / 'model'}", f"data={folder / 'text.txt'}", *words])
    with Progress(quiet=True) as progress:
        yield open_parts(cfg, progress)


def evaluation(parts: Parts) -> Any:
    return parts.evaluation(parts.evaluators)


def test_a_sound_model_passes(parts: Parts) -> None:
    assert check_stream(parts.loaded, parts.adapter, parts.corpus) <= 1e-5
    assert check_dense(parts, evaluation(parts), 4) > 0


def test_a_stream_that_is_not_the_model_is_refused(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    head = type(parts.adapter).head
    monkeypatch.setattr(type(parts.adapter), "head", lambda self, state: head(self, state) * (1 + 1e-4))
    with pytest.raises(
        UnsupportedModelError, match="the block stream differs from the model's own forward by 1.0"
    ):
        check_stream(parts.loaded, parts.adapter, parts.corpus)


def test_ladders_that_are_not_the_model_are_refused(parts: Parts) -> None:
    class Wrong:
        def weights(self, block: int, plan: Any) -> Any:
            found = dict(parts.ladders.weights(block, plan))
            return found | ({"down": found["down"] * 1.2} if "down" in found else {})

    supernet = type(parts.supernet)(parts.adapter, Wrong())
    with pytest.raises(
        MeasurementError, match="KL of the dense plan is .*, above 1e-05; the ladders are wrong"
    ):
        check_dense(parts, evaluation(replace(parts, supernet=supernet)), 4)


def test_the_dense_plan_is_the_dense_model(parts: Parts) -> None:
    ids = tiny.token_ids((1, 9))
    with torch.inference_mode():
        wanted = parts.loaded.model(input_ids=ids).logits
        found = parts.build(parts.dense_plan())(input_ids=ids).logits
    assert (found - wanted).abs().max() <= 1e-4


def test_the_estimate_counts_search_and_finals(parts: Parts, tmp_path: Path) -> None:
    cfg = parts.cfg
    found = estimate(parts, 0.5, tmp_path)
    plans = cfg.finalists + 3 * len(cfg.uniform)
    windows = int(cfg.tokens) // 32 + plans * 64 + (cfg.front_points + len(cfg.uniform)) * 64
    assert found.tokens == 32 * windows and found.seconds == 0.5 * windows and found.bytes > 1e6


def test_a_full_disk_is_refused(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage(2e6, 1e6, 1e6))
    with pytest.raises(
        SettingError, match=f"out={tmp_path}: the run may need .* MB on disk and 1 MB are free"
    ):
        estimate(parts, 0.5, tmp_path)


def test_a_search_pays_only_for_the_metrics_it_asks_for(parts: Parts) -> None:
    names = [type(e).__name__ for e in search_evaluators(parts, (Objective("kl"), Objective("params")))]
    assert names == ["Divergence"]
    assert [type(e).__name__ for e in search_evaluators(parts, (Objective("perplexity"),))] == ["Perplexity"]


def test_a_searchs_evaluation_has_only_what_it_needs_and_only_fitness(parts: Parts) -> None:
    """An evaluator on held-out windows cannot be handed to a searcher."""
    found = search_evaluation(parts, (Objective("kl"),))
    assert [type(e).__name__ for e in found.evaluators] == ["Divergence"] and found.only is Split.FITNESS


def rounding(parts: Parts) -> Parts:
    cfg = copy.deepcopy(parts.cfg)
    cfg.precision = "bf16"
    return replace(parts, cfg=cfg)


def test_a_search_in_bf16_leaves_all_other_evaluations_exact(parts: Parts) -> None:
    plan, fidelity = parts.dense_plan(), Fidelity(Split.FITNESS, (0, 4))

    def kl(evaluation: Any) -> float:
        return float(evaluation.evaluate([plan], fidelity)[0].metrics["kl"])

    rounded = search_evaluation(rounding(parts), (Objective("kl"),))
    assert abs(kl(rounded)) < 5e-3
    assert check_dense(rounding(parts), rounded, 4) > 0
    assert kl(evaluation(rounding(parts))) == kl(evaluation(parts)) != kl(rounded)
    assert rounding(parts).digests == {**parts.digests, "precision": "bf16"}


def test_rounding_that_hides_what_a_search_looks_for_is_refused(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "KL_ROUNDED", 1e-9)
    rounded = search_evaluation(rounding(parts), (Objective("kl"),))
    with pytest.raises(SettingError, match="precision=bf16 is too coarse .* allowed: precision=fp32"):
        check_dense(rounding(parts), rounded, 4)


def test_an_unknown_precision_is_one_line() -> None:
    with pytest.raises(SettingError, match="precision=bf61 is unknown; did you mean 'bf16'"):
        compose(["model=docs-llama", "precision=bf61"])
