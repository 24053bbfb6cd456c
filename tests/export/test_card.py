"""The model card says what was kept, what was measured where, and how to load it."""

from __future__ import annotations

import pytest

from autoprune.export.card import model_card
from autoprune.space import Plan

PLAN = Plan.of([(2, 48), (2, 48), (0, 48), (1, 0)])


def card(source: str = "someone/small-llama", heterogeneous: bool = True, **figures: float) -> str:
    return model_card(
        source=source,
        plan=PLAN,
        figures=figures,
        command="autoprune export RUN",
        family="llama",
        heterogeneous=heterogeneous,
    )


def test_header_is_yaml_with_library_and_base_model() -> None:
    import yaml

    text = card()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "transformers"
    assert header["base_model"] == "someone/small-llama"


@pytest.mark.parametrize("path", ["/home/me/models/llama", "./llama", "~/llama", "a/b/llama"])
def test_a_path_is_not_published(path: str) -> None:
    text = card(source=path)
    assert "base_model" not in text and path not in text
    assert "# llama, compressed by autoprune" in text


def test_equal_blocks_share_a_row() -> None:
    text = card()
    for row in (
        "| Block | KV groups | FFN width |",
        "| 0–1 | 2 | 48 |",
        "| 2 | gone | 48 |",
        "| 3 | 1 | gone |",
    ):
        assert row in text.splitlines()


def test_figures_name_their_split() -> None:
    text = card(kl_test=0.123456, params_ratio=0.6)
    assert "| kl | 0.1235 | test |" in text and "| params ratio | 0.6 | – |" in text
    assert "## Figures" not in card()


def test_loading_and_command() -> None:
    mixed, plain = card(), card(heterogeneous=False)
    assert "trust_remote_code=True" in mixed and "load_checkpoint" in mixed
    assert "trust_remote_code" not in plain
    for text in (mixed, plain):
        assert "autoprune export RUN" in text and PLAN.key in text


def test_code_in_the_card_is_valid_python() -> None:
    for text in (card(), card(heterogeneous=False)):
        for part in text.split("```python\n")[1:]:
            compile(part.split("```")[0], "card", "exec")
