"""The first tokens and the newest ones stay."""

from __future__ import annotations

from torch import Tensor

from autoprune.kv_policy import Window
from autoprune.models.caching.steps import Steps


def attention(policy: Window, steps: Steps) -> Tensor:
    """Probabilities of the steps; each sees what the cache holds, and itself."""
    return steps.softmax(
        steps.scores(steps.prompt), sink_and_recent(steps, policy.sink, policy.budget - policy.sink)
    )


def sink_and_recent(steps: Steps, sink: int, recent: int) -> Tensor:
    """Whether a token is among the first `sink`, the `recent` ones before a step, or its own, [steps, T]."""
    return (steps.places < sink) | (steps.ago <= recent)
