"""Every family of encoders, in every variant, keeps the contract."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from autoprune.errors import UnsupportedModelError
from autoprune.models import FAMILIES as ADAPTERS
from autoprune.models import adapter_for
from autoprune.space import KINDS, Plan
from tests.families import ENCODERS, FAMILIES, SENTENCES, TAUGHT
from tests.family_case import Case, difference, logits
from tests.family_contract import StreamContract

CASES = {
    f"{name}-{variant}": (family, variant)
    for name, family in {**ENCODERS, "taught": TAUGHT}.items()
    for variant in family.variants
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    family, variant = CASES[request.param]
    return Case.of(family, family.make(variant))


class TestEveryEncoder(StreamContract):
    pass


def test_every_built_in_family_is_tried() -> None:
    assert {**FAMILIES, **ENCODERS}.keys() == ADAPTERS.keys()


def test_padding_changes_nothing(case: Case) -> None:
    if case.adapter.shape.task == "images":
        return
    short = torch.randint(2, 61, (2, 6), generator=torch.Generator().manual_seed(5))
    padded = torch.cat([short, torch.full((2, 5), -1)], 1)
    for plan in (case.plans()["full"], case.plans()["gone"]):
        assert difference(case.stream(padded, plan), case.stream(short, plan)) <= 1e-5


def test_a_sublayer_that_is_gone_takes_its_norm_along(case: Case) -> None:
    full, width = case.full
    small = case.install(Plan.of([(full, width), (0, width), (full, 0)]))
    blocks = small.get_submodule(case.family.blocks)
    for kind, block in zip(KINDS, (1, 2), strict=True):
        for path in case.adapter.layout.modules(kind):
            assert getattr(blocks[block], path.partition(".")[0]) is None, path


def test_an_unpooled_model_is_refused() -> None:
    config = BertConfig(**SENTENCES, intermediate_size=24)
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is not supported, only BertForSequence"):
        adapter_for(BertForMaskedLM(config))
    config.is_decoder = True
    with pytest.raises(UnsupportedModelError, match="is_decoder=true is not supported"):
        adapter_for(BertForSequenceClassification(config))


def test_the_label_token_is_not_blind(case: Case) -> None:
    """Other inputs, other logits: the classifier reads more than its own token."""
    generator = torch.Generator().manual_seed(7)
    one, two = (torch.randint(2, 61, (1, 8), generator=generator) for _ in range(2))
    if case.adapter.shape.task == "images":
        one, two = (torch.randn(1, 2, 12, 12, generator=generator) for _ in range(2))
    else:
        two[:, 0] = one[:, 0]
    assert (logits(case.model, one) - logits(case.model, two)).abs().max() > 1e-3
