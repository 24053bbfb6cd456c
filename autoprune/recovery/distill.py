"""Distillation from the dense model: logits and block outputs, a few hundred steps on *train*."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import SettingError, nearest
from autoprune.precision import fast_in_half
from autoprune.recovery import state as states
from autoprune.recovery.lessons import Lessons
from autoprune.recovery.loss import hidden_error, logit_kl
from autoprune.recovery.masks import Masks
from autoprune.recovery.state import State

Judge = Callable[[nn.Module], float]
Watch = Callable[[int, str], None]
PRECISIONS = ("auto", "bf16", "fp32")
BETAS = (0.9, 0.95)
LOWEST = {"steps": 0, "batch": 1, "check_every": 1, "save_every": 1, "points": 0, "weight_decay": 0.0}


@dataclass(frozen=True)
class Distill:
    """Settings of `recovery=distill`.

    AdamW on fp32 weights, the learning rate rising over `warmup` (a share of the steps) and then falling to zero as a
    cosine. The loss is KL of the logits plus `hidden` times the error of the block outputs. Of the checks every
    `check_every` steps and at the end, the weights of lowest selection KL are kept. `batch` counts windows a step,
    `precision` is that of the products (auto: bf16 where that is fast, else fp32), `points` the front points recovered
    beside best/.
    """

    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: float = 0.1
    hidden: float = 16.0
    weight_decay: float = 0.0
    clip: float = 1.0
    precision: str = "auto"
    check_every: int = 50
    save_every: int = 50
    points: int = 0

    def __post_init__(self) -> None:
        for name, low in LOWEST.items():
            self._check(name, low <= getattr(self, name) < math.inf, f"a finite number of at least {low}")
        for name in ("learning_rate", "clip"):
            self._check(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        self._check("hidden", 0 <= self.hidden < math.inf, "a finite number of at least 0")
        self._check("warmup", 0 <= self.warmup < 1, "at least 0 and below 1")
        if self.precision not in PRECISIONS:
            raise SettingError(
                f"recovery.precision={self.precision} is unknown" + nearest(self.precision, PRECISIONS)
            )

    def _check(self, name: str, good: bool, allowed: str) -> None:
        if not good:
            raise SettingError(f"recovery.{name}={getattr(self, name)} is out of range; it must be {allowed}")

    @property
    def name(self) -> str:
        """What the leaderboard calls it."""
        return "distill"

    def half(self, device: torch.device) -> bool:
        """Whether products are in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and fast_in_half(device))

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        share = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Distilled:
    """Outcome: `weights` in the checkpoint's dtype, from step `kept`; `diverged` is the step of a loss that is no
    number, None when all steps were made."""

    weights: dict[str, Tensor]
    steps: int
    tokens: int
    kept: int
    checks: tuple[tuple[int, float], ...]
    diverged: int | None = None


class Distiller:
    """One recovery: a smaller model in fp32 is trained in place towards a dense one."""

    def __init__(
        self, student: Any, teacher: Any, dtype: torch.dtype, lessons: Lessons, settings: Distill, seed: int
    ) -> None:
        check_pair(student, teacher, settings)
        lessons.check(settings.batch)
        self.student, self.teacher, self.dtype = student, teacher, dtype
        self.lessons, self.settings, self.seed = lessons, settings, seed
        self.parameters: dict[str, nn.Parameter] = dict(student.named_parameters())
        self.masks = Masks(student)
        decay = [p for p in self.parameters.values() if p.ndim > 1]
        plain = [p for p in self.parameters.values() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": settings.weight_decay},
            {"params": plain},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, weight_decay=0.0)

    def run(self, judge: Judge, folder: Path, identity: str, watch: Watch) -> Distilled:
        """Train, or go on from what `folder` holds of this recovery; the result is the same bit for bit.

        `judge` gives the selection KL of a model, `watch` hears (steps done, a note).
        """
        state = states.load(folder, identity) or self._start(judge)
        if state.weights:
            self._restore(state)
        diverged = None
        with _trainable(self.student):
            while state.step < self.settings.steps and diverged is None:
                loss = self._step(state.step)
                if not math.isfinite(loss):
                    diverged = state.step
                    break
                state.step += 1
                self._after(state, judge, folder, identity)
                watch(state.step, f"loss {loss:.3f}, best selection kl {state.best_check[1]:.4f}")
        tokens = state.step * self.settings.batch * self.lessons.windows.shape[1]
        kept = state.best_check[0]
        return Distilled(state.best, state.step, tokens, kept, tuple(state.checks), diverged)

    def _start(self, judge: Judge) -> State:
        state = State()
        self._judge(state, judge)
        return state

    def _after(self, state: State, judge: Judge, folder: Path, identity: str) -> None:
        last = state.step == self.settings.steps
        if last or state.step % self.settings.check_every == 0:
            self._judge(state, judge)
        if last or state.step % self.settings.save_every == 0:
            states.save(self._snapshot(state), folder, identity)

    def _judge(self, state: State, judge: Judge) -> None:
        """Check the weights as they would be stored; keep them when they are the best so far."""
        with _rounded(self.parameters, self.dtype):
            kl = judge(self.student)
            state.checks.append((state.step, kl))
            if not state.best or state.best_check[0] == state.step:
                state.best = {n: p.detach().to(self.dtype, copy=True) for n, p in self.parameters.items()}

    def _step(self, step: int) -> float:
        """One step; a loss that is not finite changes nothing."""
        loss = self._loss(self.lessons.batch(step, self.settings.batch, self.seed).to(self.student.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(step)
        loss.backward()
        self.masks.on_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.masks.on_weights(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        return value if bool(torch.isfinite(norm)) else math.nan

    def _loss(self, ids: Tensor) -> Tensor:
        hidden = self.settings.hidden > 0
        asked = {"input_ids": ids, "use_cache": False, "output_hidden_states": hidden}
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.settings.half(ids.device)):
            with torch.no_grad():
                wanted = self.teacher(**asked)
            ours = self.student(**asked)
        loss = logit_kl(wanted.logits, ours.logits)
        if hidden:  # the first is the embedding's
            loss = loss + self.settings.hidden * hidden_error(
                wanted.hidden_states[1:], ours.hidden_states[1:]
            )
        return loss

    def _snapshot(self, state: State) -> State:
        moments = {
            n: self.optimizer.state[p] for n, p in self.parameters.items() if p in self.optimizer.state
        }
        state.weights = {n: p.detach() for n, p in self.parameters.items()}
        state.first = {n: m["exp_avg"] for n, m in moments.items()}
        state.second = {n: m["exp_avg_sq"] for n, m in moments.items()}
        return state

    @torch.no_grad()
    def _restore(self, state: State) -> None:
        for name, weight in state.weights.items():
            self.parameters[name].copy_(weight)
        for name in state.first:
            parameter = self.parameters[name]
            moments = (m[name].to(parameter.device, copy=True) for m in (state.first, state.second))
            step = {"step": torch.tensor(float(state.step))}
            self.optimizer.state[parameter] = step | dict(
                zip(("exp_avg", "exp_avg_sq"), moments, strict=True)
            )


def check_pair(student: Any, teacher: Any, settings: Distill) -> None:
    """Raise SettingError unless the two can be compared token by token and, where asked for, block by block."""
    for name, what in (
        ("vocab_size", "vocabulary"),
        ("num_hidden_layers", "blocks"),
        ("hidden_size", "hidden size"),
    ):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs and (name == "vocab_size" or settings.hidden > 0):
            raise SettingError(
                f"the teacher does not fit: {what} {theirs}, the checkpoint has {ours}; name the model it was made from"
            )


@contextmanager
def _trainable(model: Any) -> Iterator[None]:
    """Gradients on, no dropout; on a CPU with eager attention, whose backward is faster there."""
    before = model.config._attn_implementation
    model.eval().requires_grad_(True)
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.requires_grad_(False)


@contextmanager
def _rounded(parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """The values that storing in `dtype` leaves, still in fp32; the exact ones are put back."""
    exact = {name: p.data for name, p in parameters.items()}
    for p in parameters.values():
        p.data = p.data.to(dtype).to(p.data.dtype)
    try:
        yield
    finally:
        for name, p in parameters.items():
            p.data = exact[name]
