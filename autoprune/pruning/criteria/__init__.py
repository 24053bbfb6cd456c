"""Criteria: each scores single weights and ranks the units of a site, in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping

from autoprune.pruning.criteria.activation import Activation
from autoprune.pruning.criteria.base import Criterion
from autoprune.pruning.criteria.fisher import Fisher
from autoprune.pruning.criteria.flap import Flap
from autoprune.pruning.criteria.llm_pruner import LlmPruner
from autoprune.pruning.criteria.magnitude import Magnitude
from autoprune.pruning.criteria.nirvana import Nirvana
from autoprune.pruning.criteria.obs import Obs
from autoprune.pruning.criteria.random import Random
from autoprune.pruning.criteria.taylor import Taylor

CRITERIA: Mapping[str, Criterion] = {
    "obs": Obs(),
    "activation": Activation(),
    "random": Random(),
    "magnitude": Magnitude(),
    "taylor": Taylor(),
    "fisher": Fisher(),
    "flap": Flap(),
    "llm_pruner": LlmPruner(),
    "nirvana": Nirvana(),
}
