"""Where windows are cut into prompt and continuation, and what does not go with it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from autoprune.errors import AutopruneError, SettingError, UnsupportedModelError
from autoprune.run.prompts import check_settings, for_run, prompt_len
from search_spaces.kv_cache import KVCache
from search_spaces.structured import Structured
from tests.tabular import SHAPE

CUT, PLAIN = [KVCache().for_window(64)], [Structured()]
DECODER: Any = SimpleNamespace(shape=SHAPE, prompt_len=None)


def settings(**named: Any) -> Any:
    """Those that matter here."""
    base = {"window": 64, "prompt_len": None, "evaluator": {"divergence": {}}, "export": {"refit": False}}
    return OmegaConf.create({**base, **named})


def test_half_of_the_window_where_the_space_is_about_caches() -> None:
    assert prompt_len(settings(), DECODER, PLAIN) is None
    assert prompt_len(settings(), DECODER, [*PLAIN, *CUT]) == 32
    assert prompt_len(settings(prompt_len=10), DECODER, CUT) == 10
    assert prompt_len(settings(prompt_len=10), DECODER, PLAIN) == 10  # asked for, so never ignored


@pytest.mark.parametrize("asked", [63, 64, 500])
def test_a_prompt_leaves_something_to_score(asked: int) -> None:
    assert prompt_len(settings(prompt_len=62), DECODER, CUT) == 62
    with pytest.raises(
        SettingError, match=f"prompt_len={asked} leaves nothing to score in windows of 64 tokens"
    ):
        prompt_len(settings(prompt_len=asked), DECODER, CUT)


ENCODERS = [
    SimpleNamespace(shape=SHAPE),
    SimpleNamespace(shape=replace(SHAPE, task="sentences"), prompt_len=None),
]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_family_without_a_cache_is_refused(encoder: Any) -> None:
    assert prompt_len(settings(), encoder, PLAIN) is None
    with pytest.raises(UnsupportedModelError, match=r"space=\[kv_cache\]: a llama has no KV cache"):
        prompt_len(settings(), encoder, CUT)
    with pytest.raises(UnsupportedModelError, match="prompt_len=9: a llama has no KV cache"):
        prompt_len(settings(prompt_len=9), encoder, PLAIN)


@pytest.mark.parametrize("name", ["tasks", "sliding"])
def test_evaluators_that_never_decode_are_refused(name: str) -> None:
    check_settings(settings(evaluator={name: {}}), PLAIN, SHAPE)
    with pytest.raises(AutopruneError, match=f"evaluator={name} scores text that is read at once"):
        check_settings(settings(evaluator={"divergence": {}, name: {}}), CUT, SHAPE)


def test_ladders_in_an_order_of_their_own_are_not_refit() -> None:
    refit = settings(export={"refit": True})
    check_settings(refit, CUT, SHAPE)
    with pytest.raises(SettingError, match="export.refit=true ranks KV groups anew"):
        check_settings(refit, [KVCache("streaming")], SHAPE)


def test_parts_that_want_to_know_are_told_the_window() -> None:
    plain = Structured()
    assert for_run(plain, 32) is plain
    assert for_run(KVCache(), 32).options(SHAPE)["kv_budget"][-1] == 32
