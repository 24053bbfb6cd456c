"""Classifiers go the whole way: search, front, class figures, checkpoint; what does not fit them is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoprune
from autoprune.errors import AutopruneError, SettingError
from tests import tiny
from tests.families import ENCODERS

CALIBRATION = "calibration.tokens=null"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random ViT of five classes, and images whose labels it gets right more often than not."""
    place = tmp_path_factory.mktemp("images")
    model = ENCODERS["vit"].make("plain")
    model.save_pretrained(place / "model")
    values = np.random.default_rng(0).normal(size=(160, 2, 12, 12)).astype(np.float32)
    np.savez(place / "items.npz", images=values, labels=np.arange(160) % 5)
    return place / "model", place / "items.npz"


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random BERT of five classes, and sentences of unlike length."""
    place = tmp_path_factory.mktemp("sentences")
    tiny.save(ENCODERS["bert"].make("padded", vocab_size=tiny.VOCABULARY), place / "model")
    for part, count in (("train", 80), ("valid", 20), ("test", 20)):
        lines = [f"{part} {i} {tiny.text()[i * 40 : i * 40 + i % 30]!r}\t{i % 5}" for i in range(count)]
        (place / f"{part}.tsv").write_text("\n".join(lines))
    return place / "model", place


@pytest.mark.parametrize(("kind", "objective"), [("images", "kl"), ("sentences", "error_rate")])
def test_a_search_ends_with_a_front_and_a_checkpoint(
    given: Any, kind: str, objective: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, data = request.getfixturevalue(kind)
    front = given.search(
        tmp_path / "run", CALIBRATION, model=model, data=data, tokens=4000, objectives=[objective, "params"]
    )
    frame = front.frame()
    found, dense = frame[frame["name"] == "front"], frame[frame["name"] == "dense"].iloc[0]
    columns = [
        "accuracy_test",
        "macro_f1_test",
        "calibration_error_test",
        "recall_0_test",
        "recall_lowest_test",
    ]
    assert len(found) and found[columns].notna().all(axis=None)
    assert found["kv_ratio"].isna().all() and found["decode_ms"].isna().all()
    assert found[["prefill_ms", "prefill_ratio"]].notna().all(axis=None)
    assert abs(dense["kl_test"]) < 1e-5 and 0 < dense["accuracy_test"] < 1
    (best,) = {p.parent for p in (front.folder / "best").rglob("model.safetensors")}
    assert type(autoprune.load(best)).__name__.endswith("Classification")
    assert "pipeline_tag: text-generation" not in (best / "README.md").read_text()
    assert "| accuracy |" in (front.folder / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("evaluator=[perplexity,divergence]", "evaluator=perplexity does not read the data of this model"),
        ("objectives=[accuracy,params]", "'accuracy' is better when larger; did you mean 'error_rate'"),
        ("constraints={kv: 0.5x}", "constraints.kv_bytes is not a cost of this run"),
        (
            "recovery=distill",
            "recovery=distill trains language models, and model=.* is a classifier; allowed: none",
        ),
        ("data=docs", "data=docs is not what this model reads, which is images; built in: digits"),
    ],
)
def test_what_does_not_fit_is_one_line(
    given: Any, images: tuple[Path, Path], setting: str, line: str, tmp_path: Path
) -> None:
    with pytest.raises(AutopruneError, match=line) as error:
        given.search(tmp_path / "run", CALIBRATION, setting, model=images[0], data=images[1], tokens=6000)
    assert "\n" not in str(error.value)


def test_a_text_has_no_labels(given: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="evaluator=classification does not read .* which are text; leave"):
        given.search(tmp_path / "run", "evaluator=[divergence,classification]", tokens=6000)


def test_decode_is_no_cost_of_a_classifier(given: Any, images: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="constraints.decode is not a cost of this run"):
        setting = "constraints={decode: 0.5x}"
        given.search(
            tmp_path / "run",
            CALIBRATION,
            setting,
            "latency.mode=off",
            model=images[0],
            data=images[1],
            tokens=6000,
        )
