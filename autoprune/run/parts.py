"""Puts the parts of a run together from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune.cache import Cache
from autoprune.config import EVALUATORS
from autoprune.data import Corpus
from autoprune.device import device_of, exact
from autoprune.errors import AutopruneError, SettingError, nearest
from autoprune.evaluation import Context, Evaluation, FinalEvaluator, Searchable, WindowEvaluator
from autoprune.models import adapter_for
from autoprune.models.load import Loaded, load_model
from autoprune.objective import Fidelity, Objective, Split, cost_name
from autoprune.precision import FULL
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.masks.build import masked
from autoprune.pruning.masks.experts import masks_experts
from autoprune.pruning.masks.ladders import MaskedLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.run.baselines import Baselines
from autoprune.run.calibration import calibration_windows, mask_settings, recipe_of
from autoprune.run.hidden import Given, narrowed
from autoprune.run.placement import Placement, check_stream_settings, placement_of
from autoprune.run.prompts import check_settings, for_run, open_ladders, prompt_len
from autoprune.run.reading import read_corpus
from autoprune.run.stream import check_stream, dense_logits
from autoprune.run.streaming import (
    check_mapped,
    forget_all,
    keep_few_shapes,
    mapping_of,
    move,
    offload,
    supernet_of,
)
from autoprune.run.typed import check_types
from autoprune.shape import AnalyticCosts, Task
from autoprune.space import CostModel, Plan, Space, is_mask
from autoprune.sublayers import SpacePart, SublayerSpace, join, joint_options
from autoprune.supernet import Ladders, Supernet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.allocation import Allocation
    from autoprune.hardware.table import LatencyTable
    from autoprune.models.base import Adapter
    from autoprune.progress import Progress
    from autoprune.study import SupernetSpec


PRECISION = "precision"  # in a run's identity, where it is not fp32


@dataclass(frozen=True)
class Parts:
    """What a run works with."""

    cfg: DictConfig
    cache: Cache
    loaded: Loaded
    adapter: Adapter
    corpus: Corpus
    recipe: LadderRecipe
    ladder_folder: Path
    ladders: StoredLadders | MaskedLadders
    supernet: Supernet
    space_parts: tuple[SpacePart, ...]
    baselines: Baselines
    evaluators: tuple[WindowEvaluator, ...]
    placement: Placement
    final_evaluators: Mapping[str, FinalEvaluator] = field(default_factory=dict)  # by name in evaluator=[…]
    given: Given | None = None  # the model as it was named, where `loaded` is narrower

    @property
    def device(self) -> torch.device:
        """Where models run."""
        found: torch.device = self.adapter.model.device
        return found

    @property
    def digest(self) -> str:
        """Identifies model and corpus."""
        return f"{self.loaded.digest}-{self.corpus.digest}"

    @property
    def digests(self) -> dict[str, str]:
        """What every evaluation depends on."""
        masks = {"masks": self.ladders.name} if isinstance(self.ladders, MaskedLadders) else {}
        prompt = getattr(self.adapter, "prompt_len", None)
        precision = precision_of(self.cfg)
        return {
            "model": self.loaded.digest,
            "corpus": self.corpus.digest + ("" if prompt is None else f"-{prompt}"),
            "ladders": self.ladder_folder.name,
            **masks,
            **({} if precision == FULL else {PRECISION: precision}),
        }

    @property
    def teacher(self) -> Loaded:
        """The model that plans are held against."""
        return self.loaded if self.given is None else self.given.loaded

    def build(self, plan: Plan, ladders: Ladders | None = None, dtype: torch.dtype | None = None) -> Any:
        """The physically smaller model, in the checkpoint's dtype unless told; with the ladders' weights or others."""
        source = self.ladders if ladders is None else ladders
        return self.adapter.install(plan, source.weights, dtype or self.loaded.dtype)

    def dense_plan(self) -> Plan:
        """The plan that keeps everything, with all settings that the space's plans have."""
        space = self.space(None)
        return space.decode(space.dense)

    def allocations(self) -> list[Allocation]:
        """What searches may start from besides uniform plans."""
        return self.baselines.seeds(list(self.cfg.baselines))

    def options(self) -> dict[str, tuple[int, ...]]:
        """The options of every plan setting."""
        return joint_options(self.space_parts, self.adapter.shape)

    def context(self) -> Context:
        """What evaluators may use."""
        teacher = None if self.given is None else self.given.adapter
        return make_context(self.cfg, self.cache, self.loaded, self.adapter, self.corpus, teacher)

    def evaluation(
        self,
        evaluators: Sequence[WindowEvaluator],
        supernet: Supernet | None = None,
        only: Split | None = None,
        precision: str = FULL,
    ) -> Evaluation:
        """An evaluation with these evaluators on the run's corpus, and on its supernet unless told another.

        `only`: the one split that it serves; `precision`: what sublayers multiply in.
        """
        context = self.context()
        chosen = self.supernet if supernet is None else supernet
        return Evaluation(chosen, self.corpus, evaluators, context, int(self.cfg.sequences), only, precision)

    def rebuilt(self, spec: SupernetSpec, progress: Progress) -> Parts:
        """The same with another supernet; its ladders are built now, or taken from the cache."""
        recipe = replace(
            self.recipe, sites=spec.options, reference=spec.reference, follow=spec.follow, ladder="refit"
        )
        with progress.stage("building ladders") as step:
            folder = ladder_folder(self.adapter, self.loaded.digest, recipe, self.cache, step)
        stored = open_ladders(
            self.adapter, self.loaded, folder, recipe, self.space_parts, self.cache, progress
        )
        ladders = self.ladders.over(stored) if isinstance(self.ladders, MaskedLadders) else stored
        supernet = supernet_of(self.cfg, self.placement, self.adapter, stored, ladders)
        return replace(self, recipe=recipe, ladder_folder=folder, ladders=ladders, supernet=supernet)

    def space(self, table: LatencyTable | None) -> Space:
        """The search space, priced analytically and by the latency table where there is one."""
        shape = self.adapter.shape
        costs: list[CostModel] = [AnalyticCosts(shape, int(self.cfg.window))]
        found = join(self.space_parts, shape, costs if table is None else [*costs, table])
        if self.given is None:
            return found
        assert isinstance(found, SublayerSpace), "no family with experts can be rotated"
        times = {} if table is None else dict(table.given_ms)
        return replace(found, reference=self.given.costs(int(self.cfg.window)) | times)


def open_parts(cfg: DictConfig, progress: Progress) -> Parts:
    """Load the model, cut the corpus, build the ladders (or take them from the cache)."""
    check_stream_settings(cfg)
    device = device_of(cfg)
    exact(device)
    torch.set_num_threads(int(cfg.threads))
    cache = Cache(source=f"model={Path(str(cfg.model)).name} data={cfg.data}")
    space_parts = tuple(for_run(instantiate(cfg.space[name]), int(cfg.window)) for name in cfg.space)
    placement = placement_of(cfg, device, space_parts)
    if placement.told:
        progress.say(placement.told)
    with progress.stage("loading the model"):
        any_family, mappable = cfg.adapter is not None, mapping_of(cfg, placement, cache)
        loaded = load_model(str(cfg.model), bool(cfg.trust_remote_code), any_family, mappable)
        move(placement, loaded.model, device)
        adapter = adapter_for(loaded.model, cfg.adapter)
        check_mapped(cfg, placement, loaded, adapter)
        keep_few_shapes(placement, adapter)
    with progress.stage("cutting the corpus"):
        corpus = read_corpus(cfg, loaded, adapter.shape, cache)
    if corpus.repeats:
        progress.say(f"left out {corpus.repeats} windows that a more strictly held-out split has too")
    named = None if cfg.hidden is None else Given(loaded, adapter)
    if named is not None:
        loaded, adapter = narrowed(cfg, named, corpus, cache, progress)
    with progress.stage("self-check"):  # before anything dear is built or measured
        check_stream(loaded, adapter, corpus)
        forget_all(placement, loaded.model)
        offload(cfg, placement, adapter, device)
    prompt = prompt_len(cfg, adapter, space_parts)
    if prompt is not None:
        adapter.prompt_len = prompt
    check_settings(cfg, space_parts, adapter.shape)
    given = adapter, loaded.digest, calibration_windows(cfg, corpus), int(cfg.sequences), space_parts, cache
    baselines = Baselines(*given)
    recipe = recipe_of(cfg, adapter.shape, corpus, space_parts, baselines.named)
    with progress.stage("building ladders") as step:
        folder = ladder_folder(adapter, loaded.digest, recipe, cache, step)
    stored = open_ladders(adapter, loaded, folder, recipe, space_parts, cache, progress)
    ladders: StoredLadders | MaskedLadders = stored
    names = joint_options(space_parts, adapter.shape)
    if any(is_mask(name) for name in names):
        with progress.stage("taking statistics for masks") as step:
            chosen = *mask_settings(cfg), step, masks_experts(names)
            ladders = masked(stored, adapter, loaded.digest, recipe, cache, *chosen)
    supernet = supernet_of(cfg, placement, adapter, stored, ladders)
    evaluators, last = make_evaluators(cfg, adapter.shape.task)
    opened = cfg, cache, loaded, adapter, corpus, recipe, folder, ladders, supernet, space_parts
    return Parts(*opened, baselines, evaluators, placement, last, named)


def make_evaluators(
    cfg: DictConfig, task: Task = "text"
) -> tuple[tuple[WindowEvaluator, ...], dict[str, FinalEvaluator]]:
    """Those of windows, and by name those with items of their own; SettingError where one cannot read the data.

    Of the usual ones, when nothing else was asked for, only those that can.
    """
    made = {str(name): instantiate(cfg.evaluator[name]) for name in cfg.evaluator}
    unfit = [name for name, e in made.items() if task not in getattr(e, "reads", ("text",))]
    if unfit and list(made) != EVALUATORS:
        raise SettingError(
            f"evaluator={unfit[0]} does not read the data of this model, which are {task}"
            f"{'' if task == 'text' else ' with labels'}; leave it out"
        )
    made = {name: e for name, e in made.items() if name not in unfit}
    last = {name: e for name, e in made.items() if isinstance(e, FinalEvaluator)}
    windows = [e for name, e in made.items() if name not in last]
    further = [e.searched() for e in last.values() if isinstance(e, Searchable)]
    return (*windows, *(e for e in further if e is not None)), last


def make_context(
    cfg: DictConfig,
    cache: Cache,
    loaded: Loaded,
    adapter: Adapter,
    corpus: Corpus,
    teacher: Adapter | None = None,
) -> Context:
    """What evaluators of a model and corpus may use; `teacher`: where plans are held against another model."""
    return Context(
        dense_logits(adapter if teacher is None else teacher),
        cache,
        f"{loaded.digest}-{corpus.digest}",
        loaded.tokenizer,
        corpus,
        adapter.shape,
        int(cfg.sequences),
        int(cfg.window),
        int(getattr(loaded.model.config, "max_position_embeddings", None) or 1 << 20),
        getattr(adapter, "prompt_len", None),
    )


def check_finals(cfg: DictConfig, last: Mapping[str, FinalEvaluator]) -> None:
    """Raise SettingError when an objective is a metric that is measured on *test* items."""
    for name, evaluator in last.items():
        for metric in {cost_name(str(m)) for m in cfg.objectives} & set(evaluator.metrics):
            raise SettingError(
                f"objectives: {metric!r} is measured by evaluator={name} on split {evaluator.split.value}, "
                f"which no search may see; it stands in the leaderboard{_instead(name, evaluator)}"
            )


def _instead(name: str, evaluator: FinalEvaluator) -> str:
    """What a search may see of an evaluator's kind."""
    if not isinstance(evaluator, Searchable):
        return ""
    return f". With evaluator.{name}.fitness=N a search may go by task_loss or task_error, on other items"


def objectives(cfg: DictConfig, space: Space, evaluators: Sequence[WindowEvaluator]) -> tuple[Objective, ...]:
    """The settings' objectives; raises SettingError naming what can be asked for."""
    provided = {m for e in evaluators for m in e.metrics} | set(space.cost(space.dense))
    wanted = [cost_name(str(metric)) for metric in cfg.objectives]
    for metric in wanted:
        if metric not in provided:
            raise SettingError(f"objectives: no evaluator provides {metric!r}" + nearest(metric, provided))
        for evaluator in (e for e in evaluators if metric in getattr(e, "larger_is_better", ())):
            small = getattr(evaluator, "smaller_form", f"dis{metric}")
            raise SettingError(
                f"objectives: {metric!r} is better when larger" + nearest(small, provided - {metric})
            )
    return tuple(Objective(metric) for metric in wanted)


def held_out(cfg: DictConfig, corpus: Corpus, split: Split) -> Fidelity:
    """The windows of *selection* or *test* that a run reports on: as many as the settings say, or all there are."""
    return Fidelity(split, (0, min(int(cfg[f"{split.value}_windows"]), corpus.count(split))))


def search_evaluators(parts: Parts, wanted: Sequence[Objective]) -> list[WindowEvaluator]:
    """Only what the objectives need: a search does not pay for more."""
    metrics = {o.metric for o in wanted}
    return [e for e in parts.evaluators if metrics & set(e.metrics)]


def search_evaluation(parts: Parts, wanted: Sequence[Objective]) -> Evaluation:
    """What the objectives need, on *fitness* windows and no others, in the run's precision."""
    chosen = search_evaluators(parts, wanted)
    return parts.evaluation(chosen, only=Split.FITNESS, precision=precision_of(parts.cfg))


def precision_of(cfg: DictConfig) -> str:
    """What a search's evaluations compute in; settings from before there was a choice mean fp32."""
    return str(cfg.get("precision") or FULL)


def instantiate(node: Any, *args: Any) -> Any:
    """Hydra's instantiate with a user's mistakes, wrong types of settings among them, told as such."""
    import hydra
    from hydra.errors import InstantiationException

    check_types(node, str(node._get_full_key(None)))
    try:
        return hydra.utils.instantiate(node, *args, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, AutopruneError):
            raise cause from error
        if isinstance(cause, TypeError):
            raise SettingError(f"{node.get('_target_')}: {cause}") from error
        raise
