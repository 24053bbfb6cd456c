"""Gradient norm: how steep the loss is at the weights that a plan keeps."""

from __future__ import annotations

from torch import Tensor

from evaluators.gradients import Differentiated


class GradientNorm(Differentiated):
    """`gradient_norm`: Euclidean norm of the next-token loss's gradient over a plan's weights, a sequence at a time."""

    metrics = ("gradient_norm",)

    @staticmethod
    def reduce(weight: Tensor, gradient: Tensor) -> Tensor:
        """Of one tensor."""
        return gradient.square().sum()

    def finish(self, total: Tensor) -> Tensor:
        """The figure from the sum."""
        return total.sqrt()
