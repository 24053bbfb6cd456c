"""Recovery in a run and of a checkpoint: what it trains with, how it is judged, and what is said of it."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune.data import corpus_name
from autoprune.errors import SettingError, StoppedError
from autoprune.objective import Fidelity, Split
from autoprune.recovery.distill import Distill, Distilled, Distiller, check_pair
from autoprune.recovery.lessons import Lessons, open_lessons
from autoprune.recovery.scoring import Scoring
from autoprune.recovery.state import FILE
from autoprune.run.parts import held_out, instantiate
from autoprune.space import digest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.models.load import Loaded
    from autoprune.progress import Progress
    from autoprune.run.parts import Parts


@dataclass(frozen=True)
class Setting:
    """What recoveries of one model on one corpus share."""

    teacher: Loaded
    lessons: Lessons
    scoring: Scoring
    selection: Fidelity
    test: Fidelity
    settings: Distill
    seed: int


@dataclass(frozen=True)
class Recovered:
    """The outcome of a recovery and the test figures of the stored weights before and after it.

    `own_before`, `own_after`: those of evaluators with items of their own, where they were asked.
    """

    settings: Distill
    seed: int
    distilled: Distilled
    before: Mapping[str, float]
    after: Mapping[str, float]
    own_before: Mapping[str, float] = field(default_factory=dict)
    own_after: Mapping[str, float] = field(default_factory=dict)

    def row(self, key: str) -> dict[str, Any]:
        """Its row of recovered.csv: what was spent, and the test figures."""
        return {
            "key": key,
            "recovery": self.settings.name,
            "recovery_steps": self.distilled.steps,
            "recovery_tokens": self.distilled.tokens,
            "kl_test_recovered": self.after.get("kl"),
            "perplexity_test_recovered": self.after.get("perplexity"),
        }


def recovery_of(cfg: DictConfig) -> Distill | None:
    """The settings of `recovery=…`, None for `none`; raises SettingError for a value that is not allowed."""
    node = cfg.get("recovery")  # a run of an earlier version has none
    if not node:
        return None
    made = instantiate(node)
    if not isinstance(made, Distill):
        raise SettingError(f"recovery._target_={node.get('_target_')} is no recovery; allowed: none, distill")
    return made


def chosen_recovery(cfg: DictConfig, name: str, steps: int | None) -> Distill | None:
    """The recovery that `export` was asked for: with the run's own settings where it is the run's own recovery."""
    from autoprune.config import compose

    asked = compose(["model=none", f"recovery={name}"])
    own, other = cfg.get("recovery") or {}, asked.recovery
    settings = recovery_of(cfg if own.get("_target_") == other.get("_target_") else asked)
    if settings is None:
        if steps is not None:
            raise SettingError(f"--recovery-steps {steps} goes with --recovery distill")
        return None
    return settings if steps is None else replace(settings, steps=steps)


@contextmanager
def goes_on(to: Path) -> Iterator[None]:
    """Ctrl-C during a recovery says how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        if not (state_folder(to) / FILE).is_file():
            raise
        raise StoppedError(
            "stopped; the same command goes on from the last saved step of the recovery"
        ) from None


def check_recovery(parts: Parts) -> None:
    """Raise at once what a run's recovery would raise at its end: a wrong setting, a train split that is too short."""
    settings = recovery_of(parts.cfg)
    if settings is None:
        return
    if parts.device.type != "cpu" and not parts.placement.rests:
        raise SettingError(
            f"recovery={settings.name} runs the whole dense model on device={parts.device}, and stream="
            f"{parts.cfg.stream} keeps it off there; allowed: stream=off, device=cpu or recovery=none"
        )
    if settings.hidden > 0 and parts.given is not None and parts.given.wider(parts.adapter.shape):
        raise SettingError(
            f"recovery.hidden={settings.hidden:g} compares hidden states, and hidden={parts.cfg.hidden} makes them "
            "narrower than the teacher's; add recovery.hidden=0"
        )
    setting_of(parts, settings)


def setting_of(parts: Parts, settings: Distill) -> Setting:
    """What a run's recoveries share; raises DataError when its train split is too short."""
    evaluators = parts.evaluation(parts.evaluators).evaluators
    prompt = getattr(parts.adapter, "prompt_len", None)
    return make_setting(parts.cfg, parts.teacher, parts, evaluators, settings, prompt)


def make_setting(
    cfg: DictConfig,
    loaded: Loaded,
    source: Any,
    evaluators: Any,
    settings: Distill,
    prompt_len: int | None = None,
) -> Setting:
    """From a configuration and bound evaluators; `source` has a corpus and a cache.

    Raises SettingError for a classifier.
    """
    if not loaded.model.can_generate():
        raise SettingError(
            f"recovery={settings.name} trains language models, and model={loaded.name} is a classifier; allowed: none"
        )
    corpus, data = source.corpus, corpus_name(str(cfg.data))
    lessons = open_lessons(corpus, data, loaded.tokenizer, int(cfg.window), source.cache)
    lessons.check(settings.batch)
    return Setting(
        loaded,
        lessons,
        Scoring(corpus, evaluators, int(cfg.sequences), prompt_len),
        held_out(cfg, corpus, Split.SELECTION),
        held_out(cfg, corpus, Split.TEST),
        settings,
        int(cfg.seed),
    )


def recover(
    student: Any, dtype: torch.dtype, setting: Setting, folder: Path, progress: Progress
) -> Recovered:
    """Train `student` (fp32) in place, and score it on *test* before and after; see `train`."""
    check_pair(student, setting.teacher.model, setting.settings)
    before = _test(student, dtype, setting)
    distilled = train(student, dtype, setting, folder, progress)
    after = dict(setting.scoring.score(student, setting.test))
    return Recovered(setting.settings, setting.seed, distilled, before, after)


def train(
    student: Any,
    dtype: torch.dtype,
    setting: Setting,
    folder: Path,
    progress: Progress,
    judged: Callable[[int, Any], float] | None = None,
) -> Distilled:
    """Train `student` (fp32) in place; its weights end as those to store, rounded to `dtype`.

    `folder` keeps the state: a recovery that was cut short goes on from there, and ends with the same weights.
    `judged` says, of the steps done and a model, what is to be small in the weights that are kept; else KL on
    *selection* is.
    """
    distiller = Distiller(
        student, setting.teacher.model, dtype, setting.lessons, setting.settings, setting.seed
    )
    identity = _identity(student, dtype, setting)

    def judge(model: Any) -> float:
        if judged is not None:
            steps = (int(state["step"]) for state in distiller.optimizer.state.values())
            return judged(max(steps, default=0), model)
        kl = setting.scoring.score(model, setting.selection)["kl"]
        return kl if math.isfinite(kl) else math.inf

    with progress.noted("recovering", setting.settings.steps) as watch:
        distilled = distiller.run(judge, folder, identity, watch)
    fill(student, distilled.weights)
    return distilled


def _test(student: Any, dtype: torch.dtype, setting: Setting) -> dict[str, float]:
    """Test figures of the weights as they would be stored."""
    exact = {n: p.detach().clone() for n, p in student.named_parameters()}
    fill(student, {n: w.to(dtype) for n, w in exact.items()})
    found = dict(setting.scoring.score(student, setting.test))
    fill(student, exact)
    return found


@torch.no_grad()
def fill(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into a model, each in the model's dtype."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def _identity(student: Any, dtype: torch.dtype, setting: Setting) -> str:
    """Changes when the outcome could: a state of another recovery is not gone on from."""
    start = hashlib.sha256()
    for name, parameter in student.named_parameters():
        start.update(
            name.encode() + parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        )
    windows = hashlib.sha256(setting.lessons.windows.tobytes()).hexdigest()
    wanted = {k: v for k, v in asdict(setting.settings).items() if k not in ("points", "save_every")}
    where = [
        setting.scoring.corpus.digest,
        setting.selection.windows,
        torch.__version__,
        torch.get_num_threads(),
    ]
    return digest(
        [1, wanted, setting.seed, setting.teacher.digest, str(dtype), start.hexdigest(), windows, where]
    )


def state_folder(to: Path) -> Path:
    """Where the recovery of a checkpoint that will be `to` keeps its state."""
    return to.parent / f".{to.name}.recovery"


def finish(recovered: Recovered, to: Path) -> None:
    """The checkpoint is written: drop the state; raise StoppedError when the training had diverged."""
    shutil.rmtree(state_folder(to), ignore_errors=True)
    done = recovered.distilled
    if done.diverged is not None:
        raise StoppedError(
            f"recovery stopped at step {done.diverged + 1}: its loss or gradient is not finite; {to} holds the best "
            f"weights before it, those of step {done.kept}; try a smaller recovery.learning_rate"
        )


def section(recovered: Recovered) -> str:
    """What the model card says of it."""
    done = recovered.distilled
    lines = [
        f"Trained for {done.steps} steps ({done.tokens:,} tokens of split *train*, seed {recovered.seed}) by "
        f"distillation from the dense model (`recovery={recovered.settings.name}`), shapes and zeros kept; the "
        f"weights are those of step {done.kept}, the lowest KL on split *selection*. Measured on split *test*, "
        "as stored:",
        "",
        "| Figure | Before recovery | Recovered |",
        "| --- | --- | --- |",
    ]
    shown = {n: (v, recovered.after[n]) for n, v in recovered.before.items() if n in ("kl", "perplexity")}
    shown |= {
        n: (v, recovered.own_after[n]) for n, v in recovered.own_before.items() if n in recovered.own_after
    }
    lines += [f"| {name} | {before:.4g} | {after:.4g} |" for name, (before, after) in shown.items()]
    return "\n".join(lines)


Build = Callable[[torch.dtype], Any]
"""The unrecovered model in a dtype, new at every call."""


def recovered_model(
    build: Build, dtype: torch.dtype, setting: Setting, to: Path, progress: Progress
) -> tuple[Any, Recovered]:
    """The recovered model in `dtype`, ready to be saved as `to`."""
    outcome = recover(build(torch.float32), dtype, setting, state_folder(to), progress)
    model = build(dtype)
    fill(model, outcome.distilled.weights)
    return model, outcome
