"""What predictions of labels say together, beyond the mean of their values (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COLUMNS = ("label", "predicted", "confidence")  # values of an item that are no metrics by themselves
BINS = 15  # of confidence
NAMED = 20  # classes that get a recall each


def classified(columns: Mapping[str, Array]) -> dict[str, float]:
    """Accuracy, macro F1, recalls and the expected calibration error of items.

    `label` and `predicted` hold class numbers, `confidence` the probability of the predicted class. Macro F1 is over
    the classes that are a label or a prediction; `recall_lowest` is the least of all recalls.
    """
    label, predicted, confidence = (columns[name] for name in COLUMNS)
    hits = label == predicted
    recalls = {int(c): float(hits[label == c].mean()) for c in np.unique(label)}
    found = {f"recall_{c}": recall for c, recall in recalls.items()} if len(recalls) <= NAMED else {}
    return {
        "accuracy": float(hits.mean()),
        "macro_f1": float(np.mean([_f1(label, predicted, c) for c in np.union1d(label, predicted)])),
        "calibration_error": calibration_error(confidence, hits),
        "recall_lowest": min(recalls.values()),
        **found,
    }


def calibration_error(confidence: Array, hits: NDArray[np.bool_]) -> float:
    """Expected calibration error (Guo et al., 2017): mean of |accuracy - confidence| over equal bins."""
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = (abs(float((hits[at == b] - confidence[at == b]).sum())) for b in np.unique(at))
    return sum(gaps) / len(hits)


def _f1(label: Array, predicted: Array, c: float) -> float:
    both = float(((label == c) & (predicted == c)).sum())
    return 2 * both / float((label == c).sum() + (predicted == c).sum())
