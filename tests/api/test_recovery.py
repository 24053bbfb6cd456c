"""Recovery in a run, of a run's plan and of a checkpoint: figures apart, resumable, proven, mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autoprune
from autoprune.cli import main
from autoprune.errors import AutopruneError, StoppedError
from autoprune.export import roundtrip
from autoprune.front import Front
from autoprune.recovery import distill
from autoprune.recovery.distill import Distiller
from autoprune.report import leaderboard, recovered
from tests import tiny

SHORT = ("recovery=distill", "recovery.steps=6", "recovery.batch=2", "recovery.learning_rate=3e-3")
OFTEN = ("recovery.check_every=2", "recovery.save_every=2")
FIGURES = ["kl_test_recovered", "perplexity_test_recovered"]


def interrupted_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when a recovery has made so many steps."""
    real = Distiller._after

    def after(self: Distiller, state: Any, *rest: Any) -> None:
        real(self, state, *rest)
        if state.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Distiller, "_after", after)


@pytest.fixture(scope="module")
def front(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Front:
    """A finished run without recovery; nothing is timed."""
    with pytest.MonkeyPatch.context() as patch:
        noted(patch)
        return given.search(tmp_path_factory.mktemp("runs") / "plain", "latency.mode=off")


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Round trips are only noted."""
    return noted(monkeypatch)


def noted(patch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the round trips, which are left out: each starts a fresh process, and one that does is enough."""
    folders: list[Path] = []

    def prove(model: Any, folder: Path, *_: Any) -> roundtrip.RoundTrip:
        folders.append(folder)
        return roundtrip.RoundTrip(0.0, 0.0, 1, 1, 1)

    patch.setattr(roundtrip, "prove", prove)
    return folders


@pytest.fixture
def copied(front: Front, tmp_path: Path) -> Front:
    """A finished run of the test's own."""
    return Front(Path(shutil.copytree(front.folder, tmp_path / "run")))


def test_a_run_recovers_its_best_point_and_goes_on_where_it_stopped(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, unproven: list[Path]
) -> None:
    out = tmp_path / "run"
    line = given.line(out, *SHORT, *OFTEN, "recovery.points=1", "latency.mode=off")
    with monkeypatch.context() as patch:
        interrupted_after(5, patch)
        assert main(line) == 3
    assert f"stopped; continue with: autoprune resume {out}" in capfd.readouterr().err
    assert (out / ".best.recovery" / "state.safetensors").is_file() and not (out / "best").exists()
    steps: list[int] = []
    real = Distiller._step
    monkeypatch.setattr(Distiller, "_step", lambda self, step: (steps.append(step), real(self, step))[1])
    frame = autoprune.resume(out).frame()
    assert steps == [4, 5, *range(6)]  # what was not saved of best/, and another point
    assert not list(out.glob(".*.recovery"))
    assert unproven == [out / "best", next((out / "recovered").iterdir())]
    _check_recovered_run(out, frame)


def _check_recovered_run(out: Path, frame: pd.DataFrame) -> None:
    table = recovered.read(out)
    assert list(table.columns) == [
        *(
            "key",
            "recovery",
            "recovery_steps",
            "recovery_tokens",
            "kl_test_recovered",
            "perplexity_test_recovered",
        )
    ]
    assert set(table["recovery_tokens"]) == {6 * 2 * 32} and set(table["recovery_steps"]) == {6}
    best = json.loads((out / "best" / "autoprune_plan.json").read_text())
    plans = {row["key"]: json.loads(row["plan"]) for row in frame.to_dict("records")}
    keys = [k for k in table["key"] if plans[k] == best] + [p.name for p in (out / "recovered").iterdir()]
    assert keys == table["key"].tolist()
    shown = frame.set_index("key")
    assert shown.loc[keys, FIGURES].to_numpy().tolist() == table[FIGURES].to_numpy().tolist()
    assert shown.drop(keys)[FIGURES].isna().all(axis=None)
    assert 0 < shown.loc[keys[0], "kl_test_recovered"] < shown.loc[keys[0], "kl_test"], shown.loc[keys]
    card = (out / "best" / "README.md").read_text()
    assert "## Recovered" in card and f"{shown.loc[keys[0], 'kl_test_recovered']:.4g} |" in card
    assert (
        f"| kl | {shown.loc[keys[0], 'kl_test']:.4g} |" in card
        and "| kl | 0" not in card.split("## Recovered")[0]
    )


def test_recovered_and_unrecovered_figures_never_share_a_column(
    copied: Front, tmp_path: Path, unproven: list[Path]
) -> None:
    before = copied.frame()
    key = before.query("name == 'front'").sort_values("params_ratio").iloc[0]["key"]
    autoprune.export(copied.folder, key=key, to=tmp_path / "o", recovery="distill", recovery_steps=4)
    after = copied.frame()
    pd.testing.assert_frame_equal(before.drop(columns=FIGURES), after.drop(columns=FIGURES))
    row = after.set_index("key").loc[key]
    assert 0 < row["kl_test_recovered"] < row["kl_test"] and row["perplexity_test_recovered"] > 1
    assert after[FIGURES].notna().all(axis=1).tolist() == (after["key"] == key).tolist()
    text = (copied.folder / "leaderboard.md").read_text()
    assert text.count("kl_test_recovered") == text.count("perplexity_test_recovered") == 1
    leaderboard.write(before, copied.folder)  # whoever writes the table again
    assert copied.frame()[FIGURES].notna().any().all()


def test_a_checkpoint_is_recovered_and_proven(front: Front, given: Any, tmp_path: Path) -> None:
    to = autoprune.recover(
        *(front.folder / "best",),
        **{"teacher": given.model, "data": given.text, "to": tmp_path / "o", "steps": 4},
        settings=("window=32", *SHORT[2:], "quiet=true"),
    )
    model, plain = autoprune.load(to), autoprune.load(front.folder / "best")
    pairs = list(zip(model.parameters(), plain.parameters(), strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    assert any(bool((a != b).any()) for a, b in pairs)
    card = (to / "README.md").read_text()
    assert (
        "Trained for 4 steps (256 tokens of split *train*, seed 0)" in card
        and "autoprune recover best" in card
    )
    assert model(input_ids=tiny.token_ids((1, 8))).logits.shape == (1, 8, tiny.VOCABULARY)
    assert not list(tmp_path.glob(".*"))


def test_evaluators_with_items_of_their_own_see_the_checkpoint_before_and_after(
    front: Front, given: Any, tmp_path: Path, unproven: list[Path]
) -> None:
    own = ["evaluator=[divergence,perplexity,sliding,cost]", "evaluator.sliding.context=16"]
    assert recover(front, given, tmp_path / "o", *own, "evaluator.cost.context=8") == 0
    card = (tmp_path / "o" / "README.md").read_text()
    cells = {row.split(" | ")[0]: row.split(" | ")[1:] for row in re.findall(r"^\| (.*) \|$", card, re.M)}
    before, after = map(float, cells["perplexity_sliding"])
    assert after < before < 1.2 * float(cells["perplexity"][0]), cells
    assert cells["params_nonzero"][0] == cells["params_nonzero"][1] and float(cells["flops_prefill"][0]) > 0


def recover(front: Front, given: Any, to: Path, *words: str, **changed: Any) -> int:
    """The command, with some of it changed."""
    named = {"teacher": given.model, "data": given.text, "to": to, **changed}
    options = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return main(
        ["recover", str(front.folder / "best"), "window=32", "quiet=true", *SHORT[1:], *words, *options]
    )


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(
    front: Front,
    given: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    unproven: list[Path],
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(5, patch)
        assert recover(front, given, tmp_path / "o", *OFTEN) == 3
    assert capsys.readouterr().err.strip() == (
        "autoprune: stopped; the same command goes on from the last saved step of the recovery"
    )
    steps: list[int] = []
    real = Distiller._step
    monkeypatch.setattr(Distiller, "_step", lambda self, step: (steps.append(step), real(self, step))[1])
    assert recover(front, given, tmp_path / "o", *OFTEN) == 0
    assert steps == [4, 5]


def test_a_diverging_recovery_leaves_the_best_weights_and_says_so(
    front: Front,
    given: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    unproven: list[Path],
) -> None:
    real, calls = distill.logit_kl, [0]

    def broken(*pair: Any) -> Any:
        calls[0] += 1
        return real(*pair) * (float("nan") if calls[0] == 5 else 1.0)

    monkeypatch.setattr(distill, "logit_kl", broken)
    assert recover(front, given, tmp_path / "o", *OFTEN) == 3
    told = capsys.readouterr().err.strip()
    assert told.startswith("autoprune: recovery stopped at step 5: its loss or gradient is not finite;")
    assert "those of step 4" in told and len(told.splitlines()) == 1
    assert "Trained for 4 steps" in (tmp_path / "o" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "changed", "line"),
    [
        (
            ["recovery.steps=-1"],
            {},
            "recovery.steps=-1 is out of range; it must be a finite number of at least 0",
        ),
        (["recovery.step=1"], {}, "unknown setting 'recovery.step'; did you mean 'steps'?"),
        (["recovery.batch=9999"], {}, "needs as many; give more text or a smaller recovery.batch"),
        (["evaluator=[perplexity]"], {}, "recovery needs an evaluator of kl"),
        ([], {"teacher": None}, "the following arguments are required: --teacher"),
        ([], {"teacher": "/no/such"}, "model=/no/such does not exist"),
        ([], {"data": "/no/such"}, "data=/no/such is neither a file, a folder"),
    ],
)
def test_mistakes(
    front: Front,
    given: Any,
    tmp_path: Path,
    capsys: Any,
    words: list[str],
    changed: dict[str, Any],
    line: str,
) -> None:
    assert recover(front, given, tmp_path / "o", *words, **changed) == 2
    told = capsys.readouterr().err.strip()
    assert line in told and len(told.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_teacher_of_another_vocabulary(front: Front, given: Any, tmp_path: Path, capsys: Any) -> None:
    other = tiny.save(tiny.llama(vocab_size=300), tmp_path / "other")
    assert recover(front, given, tmp_path / "o", teacher=other) == 2
    assert "vocabulary 300, the checkpoint has 256" in capsys.readouterr().err


def test_a_folder_without_a_plan_is_no_checkpoint_of_ours(given: Any, tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match=r"it has no autoprune_plan\.json"):
        autoprune.recover(given.model, teacher=given.model, data=given.text, to=tmp_path / "o")


def test_no_recovery_is_no_way_to_recover(given: Any, tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match="recovery=none does nothing here; allowed: distill"):
        autoprune.recover("c", teacher=given.model, data=given.text, to=tmp_path / "o", recovery="none")


def test_a_run_is_refused_before_it_starts(given: Any, tmp_path: Path) -> None:
    for words, line in (
        (["recovery=distil"], "recovery=distil is unknown; did you mean 'distill'"),
        (["recovery=distill", "recovery.steps=-3"], r"recovery\.steps=-3 is out of range"),
        (["recovery=distill", "recovery.batch=9999"], r"recovery\.batch=9999 needs as many"),
    ):
        with pytest.raises(AutopruneError, match=line):
            given.search(tmp_path / "r", *words)
        assert not (tmp_path / "r" / "ledger.sqlite").exists()


def test_export_options_that_make_no_sense(copied: Front, tmp_path: Path) -> None:
    for named, line in (
        ({"recovery": "distil"}, "did you mean 'distill'"),
        ({"recovery_steps": 5}, "--recovery-steps 5 goes with --recovery distill"),
        ({"recovery": "distill", "recovery_steps": -5}, r"recovery\.steps=-5 is out of range"),
    ):
        with pytest.raises(AutopruneError, match=line):
            autoprune.export(copied.folder, params=0.9, to=tmp_path / "o", **named)


def test_a_diverged_run_ends_with_3_and_resumes_to_its_end(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unproven: list[Path]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "_step", lambda self, step: float("nan"))
        with pytest.raises(StoppedError, match="recovery stopped at step 1"):
            given.search(tmp_path / "r", *SHORT, "latency.mode=off")
    front = autoprune.resume(tmp_path / "r")
    assert recovered.read(front.folder)["recovery_steps"].tolist() == [0]
