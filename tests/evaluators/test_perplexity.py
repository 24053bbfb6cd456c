"""Perplexity is the stock model's own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.evaluation import Batch
from autoprune.models.llama import LlamaAdapter
from autoprune.models.load import load_model
from autoprune.objective import Split
from autoprune.run.stream import dense_logits
from evaluators.perplexity import Perplexity
from tests import tiny


def check(model: Any, ids: Tensor) -> None:
    """Mean over sequences against the model's loss, and each sequence against the loss on it alone."""
    found = Perplexity().score(Batch(Split.TEST, (0, len(ids)), ids), dense_logits(LlamaAdapter(model))(ids))[
        "nll"
    ]
    with torch.inference_mode():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in ids]
        whole = float(model(input_ids=ids, labels=ids).loss)
    assert found.dtype is torch.float64 and found.shape == (len(ids),)
    assert np.allclose(found.numpy(), losses, rtol=1e-4, atol=0)
    assert float(found.mean()) == pytest.approx(whole, rel=1e-4)


def test_it_is_the_models_own_loss() -> None:
    check(tiny.llama(noise=0.3), tiny.token_ids((4, 15)))


@pytest.mark.real
def test_it_is_a_trained_models_own_loss(real_data: Path) -> None:
    loaded = load_model(str(real_data / "hf-stories260K"))
    text = (real_data / "tinystories" / "tinystories.txt").read_text()[:4000]
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:512]).reshape(4, 128)
    check(loaded.model, ids)
