"""Calibration settings: each of them changes the recipe, or is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.config import compose
from autoprune.data import Corpus
from autoprune.errors import DataError, SettingError
from autoprune.objective import Split
from autoprune.pruning.recipe import LadderRecipe
from autoprune.run import calibration
from autoprune.run.calibration import recipe_of
from autoprune.shape import Shape
from autoprune.space import Plan
from search_spaces.merging import Merging
from search_spaces.sparsity import Sparsity
from search_spaces.structured import Structured

SHAPE = Shape("llama", 2, 32, 4, 2, 8, 48, 256, True, norm_params=32)
WINDOWS, WINDOW = 40, 16


class Text:
    """A calibration split of numbered windows."""

    def windows(self, split: Split) -> Any:
        assert split is Split.CALIBRATION
        return np.arange(WINDOWS, dtype=np.int32).repeat(WINDOW).reshape(WINDOWS, WINDOW)


def recipe(*settings: str, shape: Shape = SHAPE, parts: Sequence[Any] = (Structured(),)) -> LadderRecipe:
    cfg = compose(["model=none", f"window={WINDOW}", *settings])
    text: Any = Text()
    corpus: Corpus = text
    return recipe_of(cfg, shape, corpus, parts)


def rows(found: LadderRecipe) -> list[int]:
    return found.windows[:, 0].tolist()


def test_a_seed_draws_other_windows_and_none_twice() -> None:
    first = rows(recipe("calibration.tokens=320"))
    other = rows(recipe("calibration.tokens=320", "calibration.seed=1"))
    assert len(set(first)) == len(set(other)) == 20 and set(first) != set(other)
    assert rows(recipe("calibration.tokens=320")) == first


def test_without_a_number_all_that_is_there_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(rows(recipe())) == WINDOWS
    monkeypatch.setattr(calibration, "TOKENS", 5 * WINDOW)
    assert len(rows(recipe())) == 5


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(DataError, match="calibration.tokens=6400 but the calibration split has 640 tokens"):
        recipe("calibration.tokens=6400")


def test_a_reference_is_dense_uniform_or_a_file(tmp_path: Path) -> None:
    plan = Plan.of([(1, 24), (0, 48)])
    (tmp_path / "autoprune_plan.json").write_text(plan.to_json())
    assert recipe().reference is None
    assert recipe(f"calibration.reference={tmp_path}").reference == plan
    assert recipe(f"calibration.reference={tmp_path / 'autoprune_plan.json'}").reference == plan
    half = recipe("calibration.reference=uniform@0.5").reference
    assert half is not None and sum(w for _, w in half.widths()) < 2 * 48


@pytest.mark.parametrize("blocks", [[(1, 24)], [(1, 24), (3, 48)], [(1, 24), (1, 64)]])
def test_a_plan_of_another_model_is_refused(tmp_path: Path, blocks: list[tuple[int, int]]) -> None:
    (tmp_path / "plan.json").write_text(Plan.of(blocks).to_json())
    with pytest.raises(SettingError, match="is a plan of another model; this one has 2 blocks"):
        recipe(f"calibration.reference={tmp_path / 'plan.json'}")


def test_a_reference_needs_refit_ladders() -> None:
    with pytest.raises(SettingError, match="needs calibration.ladder=refit"):
        recipe("calibration.reference=uniform@0.5", "calibration.ladder=nested")


def test_experts_are_ranked_where_there_are_some() -> None:
    routed = replace(SHAPE, experts=8, experts_per_token=2)
    assert recipe().expert_criterion is None
    assert recipe(shape=routed).expert_criterion == "activation"
    chosen = recipe("calibration.expert_criterion=random", "calibration.seed=3", shape=routed)
    assert (chosen.expert_criterion, chosen.seed) == ("random", 3)
    with pytest.raises(
        SettingError, match="calibration.expert_criterion=tces is unknown; did you mean 'tcess'"
    ):
        recipe("calibration.expert_criterion=tces", shape=routed)
    with pytest.raises(
        SettingError, match="expert_criterion=tcess needs a model with experts; the family 'llama'"
    ):
        recipe("calibration.expert_criterion=tcess")


def test_masks_of_experts_need_no_gradients_and_no_mixtures() -> None:
    routed, groups = replace(SHAPE, experts=8, experts_per_token=2), "space=[sparsity,experts]"
    refused = "calibration.mask=taylor asks for gradients.* sparsegpt, wanda, .* space.sparsity.matrices="
    with pytest.raises(SettingError, match=refused):
        recipe("calibration.mask=taylor", groups, shape=routed, parts=[Sparsity()])
    with pytest.raises(SettingError, match="merging mixes experts, and sparsity masks each of them"):
        recipe("space=[experts,merging,sparsity]", shape=routed, parts=[Sparsity(), Merging()])
    spared = Sparsity(matrices=["q", "k", "v", "o"])
    recipe("calibration.mask=taylor", groups, shape=routed, parts=[spared])
    recipe("calibration.mask=wanda", groups, shape=routed, parts=[Sparsity()])
    recipe("calibration.mask=taylor", "space=[sparsity]", parts=[Sparsity()])


def test_a_bias_needs_a_place_and_something_left_over() -> None:
    nested, biased = ("calibration.ladder=nested", "calibration.bias=true"), replace(SHAPE, ffn_bias=True)
    assert recipe(*nested, shape=biased).bias and not recipe("calibration.ladder=nested").bias
    with pytest.raises(SettingError, match="calibration.bias=true needs calibration.ladder=nested"):
        recipe("calibration.bias=true", shape=biased)
    with pytest.raises(SettingError, match="whose output projections have biases; 'llama' has none"):
        recipe(*nested)
