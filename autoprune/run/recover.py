"""`autoprune recover`: an exported checkpoint is trained towards its dense model and written anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autoprune.cache import Cache
from autoprune.data import Corpus, corpus_name, open_corpus
from autoprune.device import device_of
from autoprune.errors import SettingError, SpaceError, UnsupportedModelError
from autoprune.evaluation import Failure, FinalEvaluator
from autoprune.forward import BuiltModel
from autoprune.kv_policy import decodes_otherwise
from autoprune.models import adapter_for
from autoprune.models.load import Loaded, load_model
from autoprune.objective import Split
from autoprune.run.export import TOKENS
from autoprune.run.finalists import staged
from autoprune.run.parts import make_context, make_evaluators
from autoprune.run.recovery import (
    Recovered,
    Setting,
    fill,
    finish,
    make_setting,
    recovered_model,
    recovery_of,
    section,
)
from autoprune.space import Plan

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.progress import Progress


@dataclass(frozen=True)
class _Source:
    corpus: Corpus
    cache: Cache


def recover_checkpoint(
    checkpoint: Path, to: Path, cfg: DictConfig, command: str, progress: Progress
) -> tuple[Recovered, Any]:
    """Write the recovered checkpoint to `to`, proven by its round trip; the outcome and the proof's figures.

    `cfg` names the teacher as `model`. Raises SettingError when the two do not belong together, and StoppedError, with
    the best weights written, when the training diverges.
    """
    from autoprune.export.card import model_card
    from autoprune.export.checkpoint import check_destination, load_checkpoint, save_checkpoint
    from autoprune.export.int8 import holds_int8
    from autoprune.export.roundtrip import prove

    to = check_destination(to)
    plan = _plan(checkpoint)
    if holds_int8(checkpoint):
        raise SettingError(
            f"{checkpoint} is in int8, which training would leave: export the plan without --int8 and recover that"
        )
    setting, last = _setting(cfg, plan, progress)
    stored, family = load_checkpoint(checkpoint), str(setting.teacher.model.config.model_type)

    def load(dtype: torch.dtype) -> Any:
        return load_checkpoint(checkpoint, dtype).to(setting.teacher.model.device)

    model, outcome = recovered_model(load, stored.dtype, setting, to, progress)
    outcome = _with_own(outcome, load(torch.float32), last, plan, progress)
    card = model_card(
        source=str(cfg.model),
        plan=plan,
        figures={},
        command=command,
        family=family,
        heterogeneous=model.config.model_type != family,
        recovered=section(outcome),
    )
    save_checkpoint(model, setting.teacher.tokenizer, to, card, plan)
    probe = torch.from_numpy(setting.scoring.corpus.windows(Split.SELECTION)[:2, :TOKENS].astype(np.int64))
    trip = prove(model, to, probe, sum(p.numel() for p in stored.parameters()))
    finish(outcome, to)
    return outcome, trip


def checkpoint_config(
    teacher: str, data: str, recovery: str, steps: int | None, seed: int, settings: Sequence[str]
) -> DictConfig:
    """The checked settings of a recovery outside a run."""
    from autoprune.config import compose

    wanted = [f"model={teacher}", f"data={data}", f"recovery={recovery}", f"seed={seed}", *settings]
    cfg = compose([*wanted, *([] if steps is None else [f"recovery.steps={steps}"])])
    if recovery_of(cfg) is None:
        raise SettingError(f"recovery={recovery} does nothing here; allowed: distill")
    return cfg


def _plan(checkpoint: Path) -> Plan:
    from autoprune.export.checkpoint import PLAN_FILE

    try:
        return Plan.from_json((checkpoint / PLAN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"{checkpoint} is no checkpoint of autoprune: it has no {PLAN_FILE}; name a folder that "
            "`autoprune export` wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SpaceError) as error:
        raise UnsupportedModelError(f"{checkpoint / PLAN_FILE} cannot be read: {error}") from error


def _with_own(
    outcome: Recovered, model: Any, last: Mapping[str, FinalEvaluator], plan: Plan, progress: Progress
) -> Recovered:
    """With the figures of evaluators that have items of their own; `model`: the unrecovered one, in fp32."""
    if not last:
        return outcome
    with progress.stage("items before and after"):
        before = _own(model, last, plan)
        fill(model, outcome.distilled.weights)
        return replace(outcome, own_before=before, own_after=_own(model, last, plan))


def _own(model: Any, last: Mapping[str, FinalEvaluator], plan: Plan) -> dict[str, float]:
    """Metrics of a built model, the cheapest first; raises SettingError where an evaluator has none for it."""
    found: dict[str, float] = {}
    for name, evaluator in staged(last):
        (outcome,) = evaluator.evaluate(BuiltModel(model), [plan])
        if isinstance(outcome, Failure):
            raise SettingError(f"evaluator={name} has no figures for this checkpoint: {outcome.reason}")
        found |= outcome.metrics
    return found


def _setting(cfg: DictConfig, plan: Plan, progress: Progress) -> tuple[Setting, dict[str, FinalEvaluator]]:
    torch.set_num_threads(int(cfg.threads))
    settings = recovery_of(cfg)
    assert settings is not None, "checkpoint_config sees to it"
    cache = Cache(source=f"model={Path(str(cfg.model)).name} data={cfg.data}")
    with progress.stage("loading the teacher"):
        own = cfg.adapter is not None
        teacher: Loaded = load_model(str(cfg.model), bool(cfg.trust_remote_code), any_family=own)
        teacher.model.to(device_of(cfg))
        adapter = adapter_for(teacher.model, cfg.adapter)
    with progress.stage("cutting the corpus"):
        corpus = open_corpus(corpus_name(str(cfg.data)), teacher.tokenizer, int(cfg.window), cache)
    evaluators, last = make_evaluators(cfg)
    context = make_context(cfg, cache, teacher, adapter, corpus)
    for windowed in evaluators:
        windowed.bind(context)
    for final in last.values():
        final.bind(context)
    cuts = decodes_otherwise(name for s in plan.sublayers for name, _ in s.settings)
    prompt = cfg.prompt_len or (int(cfg.window) // 2 if cuts else None)
    return make_setting(cfg, teacher, _Source(corpus, cache), evaluators, settings, prompt), last
