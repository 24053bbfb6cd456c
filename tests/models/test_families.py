"""Every family, in every variant, keeps the contract."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GemmaConfig, GemmaForCausalLM

from autoprune.errors import UnsupportedModelError
from autoprune.models import FAMILIES as ADAPTERS
from autoprune.models import adapter_for
from tests.families import CASES, FAMILIES, IDS, SIZES, model_of
from tests.family_contract import Case, FamilyContract


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    name, variant = request.param
    return Case.of(FAMILIES[name], model_of(name, variant))


class TestEveryFamily(FamilyContract):
    pass


def test_every_built_in_family_is_tried() -> None:
    assert FAMILIES.keys() == ADAPTERS.keys()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "opt",
            {"do_layer_norm_before": False},
            "opt with do_layer_norm_before=False is not supported, only True",
        ),
        ("opt", {"word_embed_proj_dim": 8}, "opt with word_embed_proj_dim=8 is not supported, only 32"),
        ("gpt2", {"add_cross_attention": True}, "gpt2 with add_cross_attention=true is not supported"),
    ],
)
def test_variants_that_would_go_wrong_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        adapter_for(FAMILIES[name].make("tied", **settings))


def test_bidirectional_gemma_is_refused() -> None:
    config = GemmaConfig(**{**SIZES, **IDS, "use_bidirectional_attention": True})
    with pytest.raises(UnsupportedModelError, match="use_bidirectional_attention=true is not supported"):
        adapter_for(GemmaForCausalLM(config))
