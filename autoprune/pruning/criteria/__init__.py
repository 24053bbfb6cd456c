"""Criteria: each ranks the units of a site from second moments and the output projection, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from autoprune.pruning.criteria.activation import activation_order
from autoprune.pruning.criteria.obs import obs_order

# (second moment [d, d], output projection [out, d], units) -> units, the most important first
Criterion = Callable[[Tensor, Tensor, int], Tensor]

CRITERIA: Mapping[str, Criterion] = {"obs": obs_order, "activation": activation_order}
