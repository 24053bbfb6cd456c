"""Searchers by name as a run would make them, for benchmarks that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from autoprune.config import GROUPS
from autoprune.searchers.problem import Problem
from autoprune.shape import Shape
from autoprune.space import CostModel, Space
from autoprune.study import Searcher
from autoprune.sublayers import SublayerSpace, join


def searcher(name: str, problem: Problem, settings: Mapping[str, Any] | None = None) -> Searcher:
    """`search=name` with its settings of `conf/`, some of them changed."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    text = (files(GROUPS) / "search" / f"{name}.yaml").read_text(encoding="utf-8")
    node = OmegaConf.merge(OmegaConf.create(text), dict(settings or {}))
    return instantiate(node, problem, _convert_="all")  # type: ignore[no-any-return]


def structured(shape: Shape, costs: Sequence[CostModel]) -> Space:
    """`space=[structured]` of a shape."""
    from hydra.utils import get_class

    return join([get_class("search_spaces.structured.Structured")()], shape, costs)


def sublayers(genes: Sequence[Any], full: Any, costs: Sequence[CostModel]) -> Space:
    """A space of just these genes."""
    return SublayerSpace(tuple(genes), full, tuple(costs))
