"""The block stream of the dense model, and whether it is the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autoprune.data import Corpus, as_tensor
from autoprune.errors import UnsupportedModelError
from autoprune.models.base import Adapter
from autoprune.models.load import Loaded
from autoprune.objective import Split
from autoprune.space import KINDS

STREAM = 1e-5  # largest difference to the stock model, relative to its largest logit


def dense_logits(adapter: Adapter) -> Callable[[Tensor], Tensor]:
    """The dense model through the block stream: what `Adapter.embed` takes to logits."""

    @torch.inference_mode()
    def run(ids: Tensor) -> Tensor:
        state = adapter.embed(ids)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
        return adapter.head(state)

    return run


def check_stream(loaded: Loaded, adapter: Adapter, corpus: Corpus) -> float:
    """Compare the block stream with the stock model on two windows; returns the relative difference.

    Raises UnsupportedModelError when they differ, or are not finite: searching on wrong numbers helps nobody.
    """
    ids = as_tensor(corpus.windows(Split.FITNESS)[:2])
    with torch.inference_mode():
        stock = loaded.model(**adapter.inputs(ids)).logits
    if not bool(torch.isfinite(stock).all()):
        raise UnsupportedModelError(
            f"model={loaded.name} computes logits that are not finite" + _bad_weight(loaded.model)
        )
    ours = dense_logits(adapter)(ids)
    difference = float((stock - ours).abs().max() / stock.abs().max().clamp_min(1.0))
    if not difference <= STREAM:
        raise UnsupportedModelError(
            f"model={loaded.name}: the block stream differs from the model's own forward by {difference:.2e} "
            f"of its largest logit (allowed {STREAM:.0e}); this adapter does not fit it"
        )
    return difference


def _bad_weight(model: Any) -> str:
    bad = next((n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    return f"; its {bad} holds NaN or infinity" if bad else ""
