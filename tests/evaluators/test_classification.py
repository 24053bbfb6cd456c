"""Figures of classifiers against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from autoprune.classified import classified
from autoprune.errors import DataError
from autoprune.evaluation import Batch, summarise
from autoprune.objective import Split
from evaluators.classification import Classification


def columns(
    count: int = 200, seed: int = 0
) -> tuple[dict[str, list[np.ndarray]], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 6, generator=generator)
    labels = torch.where(
        torch.rand(count, generator=generator) < 0.6,
        logits.argmax(-1),
        torch.randint(5, (count,), generator=generator),
    )
    evaluator, found = Classification(), {}
    for start in range(0, count, 7):
        rows = slice(start, start + 7)
        batch = Batch(Split.TEST, (start, start + 7), torch.zeros(7, 3), labels[rows])
        for name, column in evaluator.score(batch, logits[rows]).items():
            assert column.dtype is torch.float64 and column.ndim == 1
            found.setdefault(name, []).append(column.numpy())
    return found, logits, labels


def test_figures_are_scikit_learns() -> None:
    found, logits, labels = columns()
    scores = summarise(found)
    label, predicted = labels.numpy(), logits.argmax(-1).numpy()
    assert scores.metrics["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted))
    assert scores.metrics["error_rate"] == pytest.approx(1 - scores.metrics["accuracy"])
    assert scores.metrics["macro_f1"] == pytest.approx(metrics.f1_score(label, predicted, average="macro"))
    wanted = metrics.log_loss(label, logits.double().softmax(-1).numpy(), labels=range(6))
    assert scores.metrics["cross_entropy"] == pytest.approx(wanted, rel=1e-6)
    for c in np.unique(label):
        recall = metrics.recall_score(label == c, predicted == c)
        assert scores.metrics[f"recall_{c}"] == pytest.approx(recall)
    assert scores.metrics["recall_lowest"] == min(scores.metrics[f"recall_{c}"] for c in np.unique(label))
    assert not {"label", "predicted", "confidence"} & scores.metrics.keys()
    assert len(scores.per_window["error_rate"]) == 200


def test_calibration_error_bin_by_bin() -> None:
    found, logits, labels = columns(seed=3)
    confidence = logits.double().softmax(-1).max(-1).values.numpy()
    hits = (logits.argmax(-1) == labels).numpy()
    wanted = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            wanted += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert summarise(found).metrics["calibration_error"] == pytest.approx(wanted)
    sure = {"label": np.zeros(4), "predicted": np.zeros(4), "confidence": np.ones(4)}
    assert classified(sure)["calibration_error"] == 0


def test_many_classes_have_the_lowest_recall_only() -> None:
    label = np.arange(60.0) % 30
    found = classified(
        {"label": label, "predicted": np.where(label == 4, 5, label), "confidence": label * 0 + 0.5}
    )
    assert found["recall_lowest"] == 0 and "recall_0" not in found


def test_logits_that_are_not_finite_make_no_metric() -> None:
    batch = Batch(Split.TEST, (0, 2), torch.zeros(2, 3), torch.tensor([0, 1]))
    found = Classification().score(batch, torch.tensor([[0.0, float("nan")], [1.0, 2.0]]))
    assert not torch.isfinite(found["error_rate"])[0] and torch.isfinite(found["error_rate"])[1]


def test_text_has_no_labels() -> None:
    with pytest.raises(DataError, match="split test has no labels; evaluator=classification needs them"):
        Classification().score(Batch(Split.TEST, (0, 1), torch.zeros(1, 3)), torch.zeros(1, 2))
