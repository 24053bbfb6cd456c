"""What cannot be run is refused before anything is spent, in one line, and leaves no run behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoprune.cli import main
from autoprune.errors import AutopruneError, InfeasibleError, UnsupportedModelError
from autoprune.front import Front
from autoprune.ledger import Ledger
from autoprune.run import pipeline
from autoprune.run.outputs import NOTHING
from tests import tiny

Run = Callable[..., None]


@pytest.fixture
def refused(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A search that must be refused: with these words, before any evaluation, leaving no ledger."""

    def never(*args: object) -> None:
        raise AssertionError("the search was begun")

    monkeypatch.setattr(pipeline, "_finish", never)

    def check(says: str, *settings: str, kind: type[AutopruneError] = AutopruneError, **named: Any) -> None:
        out = named.pop("out", tmp_path / "run")
        with pytest.raises(kind) as caught:
            given.search(out, "latency.mode=off", *settings, **named)
        assert says in str(caught.value) and "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        assert not (out / "ledger.sqlite").exists()

    return check


def test_a_folder_that_holds_a_run(given: Any, front: Front) -> None:
    before = (front.folder / "ledger.sqlite").read_bytes()
    with pytest.raises(
        AutopruneError, match=f"out={front.folder} holds a run already; use `autoprune resume"
    ):
        given.search(front.folder)
    assert (front.folder / "ledger.sqlite").read_bytes() == before


def test_a_folder_that_cannot_be_made(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused("cannot be written: Not a directory", out=tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_made_on_the_command_line(
    given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(given.line(tmp_path / "file" / "run")) == 2
    said = capsys.readouterr().err
    assert said.startswith("autoprune: out: ") and "Not a directory" in said and len(said.splitlines()) == 1


def test_a_finished_run_is_not_resumed(front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(front.folder)]) == 2
    said = capsys.readouterr().err
    assert f"{front.folder} is finished; nothing to resume" in said and len(said.splitlines()) == 1


def test_a_bound_that_nothing_meets_names_the_smallest_that_is_met(refused: Run) -> None:
    refused(
        "constraints.params_total=0.1x cannot be met: the smallest feasible value is 16416 (",
        kind=InfeasibleError,
        constraints={"params_total": "0.1x"},
    )


def test_tokens_that_pay_for_nothing(refused: Run) -> None:
    refused("tokens=100 does not pay for it: the search starts with 4 windows", tokens=100)
    refused("starts with 4 windows of 32 tokens; give at least tokens=128", tokens=127)


def test_tokens_that_pay_for_no_table(refused: Run) -> None:
    """Such a run would end with an empty front: all that it measured is beyond the bound."""
    named = {"search": "auto", "constraints": {"params": "0.6x"}}
    said = "tokens=900 does not pay for it: the search starts with 43 windows of 32 tokens for the 43 plans"
    refused(said, **named, tokens=900)
    refused("give at least tokens=1728", **named, tokens=1727)
    refused("give at least evaluations=54", "evaluations=53", **named)


def test_fewer_windows_than_the_searcher_wants(refused: Run) -> None:
    refused("search.windows=9999 is not between 1 and the", "search.windows=9999")
    named = {"search": "evopress", "constraints": {"params": "0.6x"}}
    refused("fitness windows there are", "search.windows=[8,16,5000]", **named)


def test_too_little_text(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(tiny.text()[:100])
    refused("is too short: split", data=tmp_path / "short.txt")
    (tmp_path / "some.txt").write_text(tiny.text()[:4000])
    refused("calibration.tokens=1024 but the calibration split has", data=tmp_path / "some.txt")


@pytest.mark.parametrize(
    ("says", "named"),
    [
        ("objectives: no evaluator provides 'klx'; did you mean 'kl'?", {"objectives": ["klx", "params"]}),
        ("constraints.decode is not a cost of this run; ", {"constraints": {"decode": "0.5x"}}),
        ("constraints.params=half is not a bound", {"constraints": {"params": "half"}}),
        ("search=nsga4 is unknown; did you mean 'nsga3'?", {"search": "nsga4"}),
        ("model=nowhere does not exist", {"model": "nowhere"}),
        ("data=nowhere is neither a file, a folder nor", {"data": "nowhere"}),
    ],
)
def test_names_and_values_that_there_are_not(refused: Run, says: str, named: dict[str, Any]) -> None:
    refused(says, **named)


@pytest.mark.parametrize(
    ("says", "setting"),
    [
        ("search.population=2 must be at least 4", "search.population=2"),
        ("latency.rounds=3 must be at least 5", "latency.rounds=3"),
        ("calibration.criterion=xyzzy is unknown; allowed: activation, ", "calibration.criterion=xyzzy"),
        ("calibration.ladder=rope is unknown; allowed: nested, refit", "calibration.ladder=rope"),
        ("calibration.reference=uniform@x: write a ratio", "calibration.reference=uniform@x"),
        (
            "calibration.reference=uniform@-1: no uniform plan is that small",
            "calibration.reference=uniform@-1",
        ),
        ("calibration.reference=nowhere is neither dense", "calibration.reference=nowhere"),
        ("calibration.rounds=[]: name at least one share of the tokens", "calibration.rounds=[]"),
        ("calibration.rounds=[1.0, 0.0]: name at least one share", "calibration.rounds=[1,0]"),
        ("calibration.rounds=[1.0, 1.0]: ladders are rebuilt around one plan", "calibration.rounds=[1,1]"),
        ("calibration.follow=2 needs calibration.rounds of several shares", "calibration.follow=2"),
        ("evaluator.divergence.top_k=0 must be at least 1", "evaluator.divergence.top_k=0"),
    ],
)
def test_settings_out_of_range(refused: Run, says: str, setting: str) -> None:
    refused(says, setting, "latency.mode=measure")


def spoilt(given: Any, folder: Path, value: float) -> Path:
    """The model with one weight of this value."""
    tiny.save(tiny.llama(noise=0.1), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_with_broken_weights_is_refused_at_the_self_check(
    refused: Run, given: Any, tmp_path: Path, value: float
) -> None:
    refused(
        "computes logits that are not finite; its model.layers.1.mlp.up_proj.weight holds NaN or infinity",
        kind=UnsupportedModelError,
        model=spoilt(given, tmp_path / "model", value),
    )


def brittle(folder: Path) -> Path:
    """A sound model whose dimension 0 is carried at 3e38 by constant neurons of blocks 0, 1 and 2 in turn.

    It starts at -3e38 and goes to 0, -3e38 and 0: without block 0's neuron it overflows in block 1.
    """
    settings = {"mlp_bias": True, "hidden_act": "relu", "tie_word_embeddings": False}
    model = tiny.llama(noise=0.1, **settings)
    model.model.embed_tokens.weight[:, 0] = -3e38
    for layer, sign in zip(model.model.layers, (1, -1, 1), strict=True):
        mlp = layer.mlp
        layer.self_attn.o_proj.weight[0] = 0
        mlp.down_proj.weight[0], mlp.down_proj.bias[0] = 0, 0
        mlp.gate_proj.weight[5], mlp.up_proj.weight[5] = 0, 0
        mlp.gate_proj.bias[5], mlp.up_proj.bias[5] = 1, 1
        mlp.down_proj.weight[:, 5] = 0
        mlp.down_proj.weight[0, 5] = sign * 3e38
    assert bool(torch.isfinite(model(tiny.token_ids((2, 9))).logits).all())
    return tiny.save(model, folder)


def test_plans_that_overflow_fail_and_the_run_goes_on(given: Any, tmp_path: Path, no_export: None) -> None:
    settings = ("search.batch=12", "search.windows=2", "latency.mode=off")
    out = tmp_path / "run"
    named = {"search": "random", "seed": 3, "model": brittle(tmp_path / "model")}
    found = given.search(out, *settings, **named).frame()
    with closing(Ledger.open(out / "ledger.sqlite")) as ledger:
        rows = ledger.to_frame()
    failed = rows[rows["status"] == "failed"]
    assert len(failed) and (rows["status"] == "ok").any()
    assert failed["reason"].str.contains("kl is not finite on windows 0..2, from block 1 ffn on").all()
    assert (found["name"] == "front").any() and found["kl_test"].notna().all()
    assert (found["key"].isin(failed["key"])).sum() == 0


def test_a_search_without_time_ends_with_an_empty_front_and_says_so(
    given: Any, tmp_path: Path, no_export: None
) -> None:
    found = given.search(tmp_path / "run", "latency.mode=off", "seconds=1e-6").frame()
    assert set(found["name"]) == {"dense", "uniform@0.8", "uniform@0.5"}
    assert NOTHING in (tmp_path / "run" / "report.html").read_text()
