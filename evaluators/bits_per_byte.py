"""Bits per byte of text: the loss in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from autoprune.evaluation import Batch, Context
from autoprune.token_bytes import token_bytes


class BitsPerByte:
    """`bits_per_byte`: bits of the predicted tokens (all but the first of a window) over their bytes of text.

    Per window stand `bits` and `bytes`; a token for unknown characters counts no bytes.
    """

    metrics = ("bits_per_byte", "bits", "bytes")
    needs: Literal["supernet"] = "supernet"

    def __init__(self) -> None:
        self._context: Context | None = None
        self._bytes: Tensor | None = None

    def bind(self, context: Context) -> None:
        """Remember whose tokens these are."""
        self._context, self._bytes = context, None

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Bits and bytes of each sequence, fp64 [B]; logits [B, T, V]."""
        if self._bytes is None:
            assert self._context is not None, "bind() comes first"
            self._bytes = token_bytes(self._context.tokenizer, logits.shape[-1]).to(logits.device)
        targets = batch.ids[:, 1:]
        chosen = torch.gather(logits[:, :-1], -1, targets[..., None]).squeeze(-1)
        nll = (torch.logsumexp(logits[:, :-1], dim=-1) - chosen).double()
        sizes = self._bytes[targets]
        if batch.score_mask is not None:
            mask = batch.score_mask[:, :-1]
            nll, sizes = torch.where(mask, nll, 0.0), sizes * mask
        return {"bits": nll.sum(-1) / math.log(2), "bytes": sizes.sum(-1)}
