"""Checkpoints of classifiers come back equal in a fresh process, with autoprune and without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.modeling.tokens import RULES
from autoprune.export.roundtrip import Reloaded, judge, reload
from autoprune.shape import AnalyticCosts
from autoprune.space import plan_cost
from tests.families import ENCODERS, TAUGHT
from tests.family_case import Case, inputs, logits

CASES = {**ENCODERS, "taught": TAUGHT}
ROWS = [
    (name, plan)
    for name in CASES
    for plan in (("narrow", "gone", "no_attention") if name in ("bert", "vit") else ("gone",))
]


def probe(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if name in ("vit", "deit", "taught"):
        return torch.randn(2, 2, 12, 12, generator=generator)
    ids = torch.randint(2, 61, (2, 14), generator=generator)
    ids[0, 9:] = -1
    return ids


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Any, int, Reloaded]]:
    """All checkpoints of sentences in one fresh process, all of images in another."""
    place, found = tmp_path_factory.mktemp("encoders"), {}
    for name, plan_name in ROWS:
        case = Case.of(CASES[name], CASES[name].make(next(iter(CASES[name].variants))))
        plan, folder = case.plans()[plan_name], place / f"{name}-{plan_name}"
        save_checkpoint(case.install(plan), None, folder, "", plan)
        parameters = int(plan_cost(plan, AnalyticCosts(case.adapter.shape))["params_total"])
        found[name, plan_name] = (folder, case.install(plan), parameters)
    seen = {}
    for group in ({"bert", "roberta", "distilbert"}, {"vit", "deit", "taught"}):
        rows = [row for row in found if row[0] in group]
        given = inputs(found[rows[0]][1], probe(rows[0][0]))
        seen |= dict(zip(rows, reload([found[row][0] for row in rows], given), strict=True))
    return {row: (*found[row], seen[row]) for row in found}


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_it_comes_back_equal(saved: dict[Any, Any], row: tuple[str, str]) -> None:
    folder, model, parameters, seen = saved[row]
    ids = probe(row[0])
    judge(model, folder, inputs(model, ids), parameters, seen)
    stock = seen.module.startswith("transformers.models.")
    assert stock == (row[1] == "narrow")
    again = load_checkpoint(folder)
    assert type(again) is type(model)
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_what_is_stored(saved: dict[Any, Any]) -> None:
    for (name, plan), (folder, *_) in saved.items():
        family = "deit" if name == "taught" else name
        config = json.loads((folder / "config.json").read_text())
        files = {file.name for file in folder.glob("*.py")}
        if plan == "narrow":
            assert config["model_type"] == family and not files and "auto_map" not in config
        else:
            assert config["model_type"] == f"autoprune_{family}"
            shared = {
                "bert": ["_postnorm"],
                "roberta": ["_postnorm"],
                "vit": ["_prenorm"],
                "deit": ["_prenorm"],
            }
            endings = (
                "",
                "_cache",
                "_policies",
                "_prompt",
                "_encoder",
                f"_{family}",
                *shared.get(family, []),
            )
            own = {f"modeling_autoprune{ending}.py" for ending in endings}
            rules = {f"tokens{ending}.py" for ending in ("", *(f"_{rule}" for rule in RULES))}
            assert files == own | rules
