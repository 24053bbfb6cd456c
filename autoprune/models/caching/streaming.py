"""Some KV groups keep everything, the others the first tokens and the newest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.kv_policy import Streaming
from autoprune.models.caching.steps import Steps
from autoprune.models.caching.window import sink_and_recent


def attention(policy: Streaming, steps: Steps) -> Tensor:
    """Probabilities of the steps; the groups that keep everything come first."""
    full = torch.arange(steps.key.shape[1], device=steps.key.device) < policy.full_groups
    kept = full[:, None, None] | sink_and_recent(steps, policy.sink, policy.recent)
    return steps.softmax(steps.scores(steps.prompt), kept[:, None])
