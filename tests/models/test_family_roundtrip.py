"""Checkpoints of every family come back equal in a fresh process, with autoprune and without it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.roundtrip import Reloaded, judge, reload
from autoprune.shape import AnalyticCosts
from autoprune.space import Plan, plan_cost
from tests.families import CASES, FAMILIES, VOCABULARY, model_of
from tests.family_case import Case, cached, logits

FIRST = {(name, next(iter(family.variants))) for name, family in FAMILIES.items()}
ROWS = [
    (*c, plan) for c in CASES for plan in (("narrow", "gone", "no_attention") if c in FIRST else ("gone",))
]


@dataclass(frozen=True)
class Saved:
    """A checkpoint, the model it was written from, and what a fresh process without autoprune saw of it."""

    folder: Path
    model: Any
    plan: Plan
    parameters: int
    seen: Reloaded


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, ids: Tensor) -> dict[str, Saved]:
    """One checkpoint a row; all are loaded in one fresh process."""
    place, found = tmp_path_factory.mktemp("families"), []
    for row in ROWS:
        case = Case.of(FAMILIES[row[0]], model_of(*row[:2]))
        plan, folder = case.plans()[row[2]], place / "-".join(row)
        save_checkpoint(case.install(plan), None, folder, "", plan)
        parameters = int(plan_cost(plan, AnalyticCosts(case.adapter.shape))["params_total"])
        found.append((folder, case.install(plan), plan, parameters))
    seen = reload([folder for folder, *_ in found], ids)
    return {row[0].name: Saved(*row, one) for row, one in zip(found, seen, strict=True)}


@pytest.mark.parametrize(("family", "variant", "plan"), ROWS)
def test_it_comes_back_equal(
    saved: dict[str, Saved], ids: Tensor, family: str, variant: str, plan: str
) -> None:
    case = saved[f"{family}-{variant}-{plan}"]
    judge(case.model, case.folder, ids, case.parameters, case.seen)
    module = case.seen.module
    assert module.startswith("transformers.models.") == (plan == "narrow")
    assert plan == "narrow" or module.endswith(f"modeling_autoprune_{family}")
    again = load_checkpoint(case.folder)
    assert type(again) is type(case.model)
    assert torch.equal(logits(again, ids), logits(case.model, ids))
    assert (cached(again, ids, None) - logits(again, ids)).abs().max() <= 1e-4


def test_what_is_stored(saved: dict[str, Saved]) -> None:
    for name, case in saved.items():
        family, _, plan = name.split("-")
        config = json.loads((case.folder / "config.json").read_text())
        files = {file.name for file in case.folder.glob("*.py")}
        if plan == "narrow":
            assert config["model_type"] == family and not files and "auto_map" not in config
        else:
            assert config["model_type"] == f"autoprune_{family}"
            assert files == {
                "modeling_autoprune.py",
                "modeling_autoprune_cache.py",
                "modeling_autoprune_policies.py",
                "modeling_autoprune_prompt.py",
                f"modeling_autoprune_{family}.py",
            }


def test_grouped_blocks_of_fewer_heads_are_the_stock_class_where_it_can_say_so(tmp_path: Path) -> None:
    for name, family in FAMILIES.items():
        model = model_of(name, next(iter(family.variants)))
        case = Case.of(family, model)
        small = case.install(Plan.of([(1, 9 * family.step)] * 3))
        assert (type(small) is type(model)) == (name not in ("gpt2", "opt", "olmoe")), name
