"""Gradients of the loss with respect to the weights of a plan, through the block stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.evaluation import Context
from autoprune.space import Plan
from autoprune.supernet import Supernet

Reduce = Callable[[Tensor, Tensor], Tensor]
"""What one weight and its gradient add to the sum."""


def gradients(supernet: Supernet, plan: Plan, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights of the plan's sublayers and the gradients there of the mean next-token loss on ids [B, T].

    Embedding and head stay fixed. Weights are views of the ladders' as in a pass: nothing is copied. Empty when every
    sublayer is gone.
    """
    adapter, leaves = supernet.adapter, list[Tensor]()
    ids = ids.to(adapter.model.device)
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            state = adapter.embed(ids)
        for at, sublayer in enumerate(plan.sublayers):
            if sublayer.gone:
                continue
            held = supernet.ladders.weights(at // 2, sublayer)
            weights = {name: tensor.detach().requires_grad_() for name, tensor in held.items()}
            leaves += weights.values()
            state = adapter.run_sublayer(at // 2, sublayer.kind, state, weights, sublayer)
        if not leaves:
            return []
        logits = adapter.head(state)[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        found = torch.autograd.grad(loss, leaves)
    return [(leaf.detach(), gradient) for leaf, gradient in zip(leaves, found, strict=True)]


class Differentiated:
    """A proxy that is a sum over weights and their gradients: of each sequence its own, so one backward a sequence."""

    metrics: tuple[str, ...]
    needs: Literal["supernet"] = "supernet"
    reduce: Reduce

    def bind(self, context: Context) -> None:
        """Nothing to prepare."""

    def measure(self, supernet: Supernet, plans: Sequence[Plan], ids: Tensor) -> list[Mapping[str, Tensor]]:
        """The figure of each sequence, fp64 [B]; nothing is shared between plans."""
        return [
            {self.metrics[0]: torch.stack([self._of(supernet, plan, row[None]) for row in ids])}
            for plan in plans
        ]

    def _of(self, supernet: Supernet, plan: Plan, ids: Tensor) -> Tensor:
        parts = [self.reduce(w, g).double() for w, g in gradients(supernet, plan, ids)]
        return self.finish(torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64))

    def finish(self, total: Tensor) -> Tensor:
        """The figure from the sum."""
        return total
