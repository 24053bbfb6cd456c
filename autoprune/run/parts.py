"""Puts the parts of a run together from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.data import Corpus, open_corpus
from autoprune.errors import AutopruneError, DataError, SettingError, nearest
from autoprune.evaluation import Context, Evaluation, LogitEvaluator
from autoprune.models import adapter_for
from autoprune.models.load import Loaded, load_model
from autoprune.objective import Constraint, Objective, Split, parse_constraint
from autoprune.pruning.nested import NestedLadders, build_nested
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import KINDS, Candidate, CostModel, Plan, Space
from autoprune.supernet import Supernet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.hardware.table import LatencyTable
    from autoprune.models.base import Adapter
    from autoprune.progress import Progress

CRITERIA = ("activation",)


class SpacePart(Protocol):
    """One group of `space=[…]`."""

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of each setting."""

    def build(self, shape: Shape, costs: Sequence[CostModel]) -> Space:
        """The space of a model."""


@dataclass(frozen=True)
class Parts:
    """What a run works with."""

    cfg: DictConfig
    cache: Cache
    loaded: Loaded
    adapter: Adapter
    corpus: Corpus
    ladder_folder: Path
    ladders: NestedLadders
    supernet: Supernet
    space_part: SpacePart
    evaluators: tuple[LogitEvaluator, ...]

    @property
    def digest(self) -> str:
        """Identifies model and corpus."""
        return f"{self.loaded.digest}-{self.corpus.digest}"

    def build(self, plan: Plan) -> Any:
        """The physically smaller model, in the checkpoint's dtype."""
        return self.adapter.install(plan, self.ladders.weights, self.loaded.dtype)

    def dense_plan(self) -> Plan:
        """The plan that keeps everything."""
        shape = self.adapter.shape
        return Plan.of([(shape.kv_groups, shape.ffn)] * shape.blocks)

    def evaluation(self, evaluators: Sequence[LogitEvaluator]) -> Evaluation:
        """An evaluation with these evaluators on the run's supernet and corpus."""
        context = Context(dense_logits(self.adapter), self.cache, self.digest)
        return Evaluation(self.supernet, self.corpus, evaluators, context, int(self.cfg.sequences))

    def space(self, table: LatencyTable | None) -> Space:
        """The search space, priced analytically and by the latency table where there is one."""
        shape = self.adapter.shape
        costs: list[CostModel] = [AnalyticCosts(shape, int(self.cfg.window))]
        return self.space_part.build(shape, costs if table is None else [*costs, table])


def open_parts(cfg: DictConfig, progress: Progress) -> Parts:
    """Load the model, cut the corpus, build the ladders (or take them from the cache)."""
    torch.set_num_threads(int(cfg.threads))
    if cfg.calibration.criterion not in CRITERIA:
        raise SettingError(
            f"calibration.criterion={cfg.calibration.criterion} is unknown"
            + nearest(cfg.calibration.criterion, CRITERIA)
        )
    cache = Cache()
    with progress.stage("loading the model"):
        loaded = load_model(str(cfg.model), bool(cfg.trust_remote_code))
        adapter = adapter_for(loaded.model)
    with progress.stage("cutting the corpus"):
        data = "docs" if cfg.data == "auto" else str(cfg.data)
        corpus = open_corpus(data, loaded.tokenizer, int(cfg.window), cache)
    count = calibration_windows(cfg, corpus)
    with progress.stage("building ladders") as step:
        windows = corpus.windows(Split.CALIBRATION)[:count]
        folder = build_nested(adapter, loaded.digest, windows, int(cfg.sequences), cache, step)
    ladders = NestedLadders(adapter, folder)
    supernet = Supernet(adapter, ladders, int(cfg.memory_mb) << 20)
    evaluators = tuple(instantiate(cfg.evaluator[name]) for name in cfg.evaluator)
    return Parts(cfg, cache, loaded, adapter, corpus, folder, ladders, supernet, _space_part(cfg), evaluators)


def calibration_windows(cfg: DictConfig, corpus: Corpus) -> int:
    """Calibration windows the settings ask for; raises DataError when the split has fewer."""
    count = max(1, int(cfg.calibration.tokens) // int(cfg.window))
    if count > corpus.count(Split.CALIBRATION):
        have = corpus.count(Split.CALIBRATION) * int(cfg.window)
        raise DataError(
            f"calibration.tokens={cfg.calibration.tokens} but the calibration split has {have} tokens; "
            "ask for fewer or give more text"
        )
    return count


def dense_logits(adapter: Adapter) -> Callable[[Tensor], Tensor]:
    """The dense model through the block stream: ids [B, T] to logits [B, T, V]."""

    @torch.inference_mode()
    def run(ids: Tensor) -> Tensor:
        state = adapter.embed(ids)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
        return adapter.head(state)

    return run


def objectives(cfg: DictConfig, space: Space, evaluators: Sequence[LogitEvaluator]) -> tuple[Objective, ...]:
    """The settings' objectives; raises SettingError naming what can be asked for."""
    provided = {m for e in evaluators for m in e.metrics} | set(space.cost(space.dense))
    for metric in cfg.objectives:
        if metric not in provided:
            raise SettingError(f"objectives: no evaluator provides {metric!r}" + nearest(metric, provided))
    return tuple(Objective(str(m)) for m in cfg.objectives)


def constraints(cfg: DictConfig, space: Space) -> tuple[Constraint, ...]:
    """The settings' constraints in the metrics' units, checked for feasibility."""
    import numpy as np

    dense = space.cost(space.dense)
    found = tuple(parse_constraint(str(m), v, dense) for m, v in cfg.constraints.items())
    smallest = Candidate(tuple(0 for _ in space.genes))
    space.repair(smallest, found, np.random.default_rng(0))  # raises InfeasibleError at once
    return found


def search_evaluators(parts: Parts, wanted: Sequence[Objective]) -> list[LogitEvaluator]:
    """Only what the objectives need: a search does not pay for more."""
    metrics = {o.metric for o in wanted}
    return [e for e in parts.evaluators if metrics & set(e.metrics)]


def _space_part(cfg: DictConfig) -> SpacePart:
    if len(cfg.space) != 1:
        raise SettingError(
            f"space={list(cfg.space)}: this version searches one group at a time; allowed: structured"
        )
    return instantiate(cfg.space[next(iter(cfg.space))])  # type: ignore[no-any-return]


def instantiate(node: Any, *args: Any) -> Any:
    """Hydra's instantiate with a user's mistakes told as such."""
    import hydra
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate(node, *args, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, AutopruneError):
            raise cause from error
        if isinstance(cause, TypeError):
            raise SettingError(f"{node.get('_target_')}: {cause}") from error
        raise
