"""Synaptic saliency: how much of the loss hangs on the weights that a plan keeps."""

from __future__ import annotations

from torch import Tensor

from evaluators.gradients import Differentiated


class Saliency(Differentiated):
    """`saliency`: sum over a plan's weights of |weight x gradient of the next-token loss|, a sequence at a time.

    Synaptic saliency (Tanaka et al. 2020) with the loss of a trained model.
    """

    metrics = ("saliency",)

    @staticmethod
    def reduce(weight: Tensor, gradient: Tensor) -> Tensor:
        """Of one tensor."""
        return (weight * gradient).abs().sum()
