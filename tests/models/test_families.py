"""Every family, in every variant, keeps the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM

from autoprune.errors import UnsupportedModelError
from autoprune.models import adapter_for
from tests.families import CASES, FAMILIES, IDS, SIZES, model_of
from tests.family_case import Case, difference, logits
from tests.family_contract import FamilyContract

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    name, variant = request.param
    return Case.of(FAMILIES[name], model_of(name, variant))


class TestEveryFamily(FamilyContract):
    pass


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


@pytest.mark.parametrize(
    ("name", "variant", "settings"),
    [
        ("phi3", "longrope", {"original_max_position_embeddings": 8}),
        ("llama", "tied", {"rope_parameters": DYNAMIC, "max_position_embeddings": 8}),
    ],
)
def test_rotary_frequencies_that_change_with_the_length(
    name: str, variant: str, settings: dict[str, Any]
) -> None:
    case = Case.of(FAMILIES[name], FAMILIES[name].make(variant, **settings))
    short, long = (torch.randint(1, 61, (2, n), generator=torch.Generator().manual_seed(n)) for n in (6, 14))
    wanted = {n: logits(case.zeroed(case.plans()[n]), short) for n in ("full", "gone")}
    logits(case.model, long)  # from now on the dense model holds other frequencies
    for plan_name, short_logits in wanted.items():
        plan = case.plans()[plan_name]
        assert difference(logits(case.install(plan), short), short_logits) <= 1e-5, plan_name
        assert difference(logits(case.install(plan), long), logits(case.zeroed(plan), long)) <= 1e-5, (
            plan_name
        )
        assert difference(case.stream(long, plan), logits(case.zeroed(plan), long)) <= 1e-5, plan_name


def test_bidirectional_gemma_is_refused() -> None:
    config = GemmaConfig(**{**SIZES, **IDS, "use_bidirectional_attention": True})
    with pytest.raises(UnsupportedModelError, match="use_bidirectional_attention=true is not supported"):
        adapter_for(GemmaForCausalLM(config))
