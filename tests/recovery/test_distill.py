"""Training helps, is deterministic, keeps the best check, goes on where it stopped, and stops at what is no number."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from autoprune.errors import SettingError
from autoprune.recovery import distill, state
from autoprune.recovery.distill import Distill
from tests import tiny


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def falling() -> Any:
    """A judge who likes the last weights best."""
    calls = count()
    return lambda model: -float(next(calls))


def start_of(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def put_back(model: Any, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def test_it_lowers_selection_kl_and_keeps_the_lowest(make: Any, go: Any, judge: Any, student: Any) -> None:
    done = go(make(steps=40, check_every=8))
    kls = dict(done.checks)
    assert list(kls) == [0, 8, 16, 24, 32, 40]
    assert kls[done.kept] == min(kls.values()) < 0.9 * kls[0]
    put_back(student, done.weights)
    assert judge(student) == pytest.approx(kls[done.kept], rel=1e-5)
    assert (done.steps, done.tokens, done.diverged) == (40, 40 * 2 * 12, None)


def test_of_the_checks_the_lowest_is_kept_even_when_it_is_the_first(make: Any, go: Any, student: Any) -> None:
    before, answers = start_of(student), iter([1.0, 2.0, 3.0])
    done = go(make(), judge=lambda model: next(answers))
    assert done.kept == 0 and same(done.weights, before)


def test_what_is_judged_is_what_is_stored(make: Any, go: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def judge(model: Any) -> float:
        seen.append(start_of(model))
        return -float(len(seen))

    done = go(make(dtype=torch.bfloat16), judge=judge)
    assert {t.dtype for t in done.weights.values()} == {torch.bfloat16}
    assert same({n: t.float() for n, t in done.weights.items()}, seen[-1])


def test_the_seed_decides_everything(make: Any, go: Any, student: Any) -> None:
    before = start_of(student)
    results = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        put_back(student, before)
        results.append(go(make(seed=seed), folder).weights)
    assert same(results[0], results[1]) and not same(results[0], results[2])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_crash_loses_at_most_some_steps_and_not_one_bit(
    make: Any, go: Any, student: Any, tmp_path: Path, precision: str
) -> None:
    before = start_of(student)
    whole = go(make(precision=precision), "whole")
    put_back(student, before)
    made: list[int] = []

    def crash(step: int, note: str) -> None:
        made.append(step)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(make(precision=precision), "cut", watch=crash)
    put_back(student, before)
    resumed = go(make(precision=precision), "cut", watch=lambda step, note: made.append(step))
    assert made == [*range(1, 9), *range(6, 13)]  # saved after step 5
    assert same(whole.weights, resumed.weights) and whole.checks == resumed.checks
    assert [f.name for f in (tmp_path / "cut").iterdir()] == [state.FILE]


def test_the_state_of_another_recovery_is_not_taken(make: Any, go: Any) -> None:
    go(make(), identity="a")
    made: list[int] = []
    go(make(), identity="b", watch=lambda step, note: made.append(step))
    assert made[0] == 1


def test_a_state_that_cannot_be_read_starts_over(make: Any, go: Any, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / state.FILE).write_bytes(b"no state")
    assert go(make()).steps == 12


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(
    make: Any, go: Any, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = distill.logit_kl, [0]

    def broken(teacher: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return real(teacher, ours) * (float("nan") if count[0] == 10 else 1.0)

    monkeypatch.setattr(distill, "logit_kl", broken)
    done = go(make())
    assert (done.diverged, done.steps, done.kept) == (9, 9, 6)
    assert all(bool(torch.isfinite(p).all()) for p in [*done.weights.values(), *student.parameters()])


def test_a_gradient_that_is_no_number_stops_too(make: Any, go: Any, student: Any) -> None:
    maker = make()
    maker.parameters["model.norm.weight"].requires_grad_(True).register_hook(lambda g: g * float("nan"))
    done = go(maker)
    assert (done.diverged, done.steps) == (0, 0)
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())


def test_hidden_states_and_logits_both_teach(make: Any, go: Any, student: Any) -> None:
    before, results = start_of(student), []
    for hidden in (0.0, 1.0, 10.0):
        put_back(student, before)
        results.append(go(make(hidden=hidden), f"h{hidden}", judge=falling()))
    assert not same(results[0].weights, results[1].weights)
    assert not same(results[1].weights, results[2].weights)


def test_the_gradient_is_clipped(make: Any, go: Any, student: Any) -> None:
    before, results = start_of(student), []
    for clip in (1e-9, 1e-3):
        put_back(student, before)
        results.append(go(make(clip=clip, steps=1), f"{clip}", judge=falling()).weights)
    moved = [max(float((w[n] - before[n]).abs().max()) for n in before) for w in results]
    assert moved[0] < 0.2 * moved[1]  # Adam's steps are blind to scale until the gradient meets its epsilon


def test_the_model_is_left_as_it_was_but_for_its_weights(make: Any, go: Any, student: Any) -> None:
    before = student.config._attn_implementation
    go(make(steps=1))
    assert student.config._attn_implementation == before != "eager"
    assert not any(p.requires_grad for p in student.parameters()) and not student.training


def test_the_rate_rises_and_falls() -> None:
    settings = Distill(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[99] < 0.01


def test_no_steps_change_nothing(make: Any, go: Any, student: Any) -> None:
    before = start_of(student)
    assert same(go(make(steps=0)).weights, before)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"steps": -1}, "recovery.steps=-1 is out of range; it must be a finite number of at least 0"),
        ({"batch": 0}, "recovery.batch=0 is out of range; it must be a finite number of at least 1"),
        (
            {"learning_rate": 0.0},
            "recovery.learning_rate=0.0 is out of range; it must be a finite number above 0",
        ),
        ({"warmup": 1.0}, "recovery.warmup=1.0 is out of range; it must be at least 0 and below 1"),
        ({"precision": "bf61"}, "recovery.precision=bf61 is unknown; did you mean 'bf16'?"),
    ],
)
def test_wrong_settings_are_told_in_a_line(setting: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as told:
        Distill(**setting)
    assert str(told.value) == line


def test_a_teacher_of_another_vocabulary_or_depth_is_refused(make: Any, teacher: Any) -> None:
    with pytest.raises(SettingError, match="vocabulary 256, the checkpoint has 300; name the model"):
        make(model=tiny.llama(2, vocab_size=300))
    with pytest.raises(SettingError, match="blocks 2, the checkpoint has 3"):
        make(model=tiny.llama(3))
    make(model=tiny.llama(3), hidden=0.0)  # logits alone can be compared


def test_the_defaults_of_the_settings_file(root: Path) -> None:
    written = yaml.safe_load((root / "conf" / "recovery" / "distill.yaml").read_text())
    assert written.pop("_target_") == "autoprune.recovery.distill.Distill"
    assert {**written, "learning_rate": float(written["learning_rate"])} == vars(Distill())


def test_products_are_in_bf16_where_that_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for fast in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda fast=fast: fast)
        halves = [Distill(precision=word).half(cpu) for word in ("auto", "bf16", "fp32")]
        assert halves == [fast, True, False] and Distill().half(gpu)
