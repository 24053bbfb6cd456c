"""How far a smaller model is from the dense one: in its logits, and after every block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def logit_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher || student) in nats, over the whole vocabulary; logits [B, T, V]."""
    target, ours = (functional.log_softmax(x.float(), -1).flatten(0, 1) for x in (teacher, student))
    return functional.kl_div(ours, target, log_target=True, reduction="batchmean")


def hidden_error(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Mean over blocks of the squared error of a block's output, in units of the teacher's variance there.

    Both hold one [B, T, d] per block, block i beside block i; 1.0 is the error of predicting the mean.
    """
    terms = [
        functional.mse_loss(ours.float(), theirs.float()) / theirs.float().var().clamp_min(1e-12)
        for theirs, ours in zip(teacher, student, strict=True)
    ]
    return torch.stack(terms).mean()
