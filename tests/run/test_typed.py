"""Settings of a wrong type are refused by name before anything is made of them."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.run.parts import instantiate
from autoprune.run.typed import check_types


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search.candidates=2.5"], "search.candidates=2.5 must be a whole number"),
        (["search.candidates=null"], "search.candidates=null must be a whole number"),
        (["search.racers=true"], "search.racers=True must be a whole number"),
        (["search.z=wide"], "search.z=wide must be a number"),
        (["search.z=nan"], "search.z=nan must be a number"),
        (["search.caution=3"], "search.caution=3 must be a list, each of it a number"),
        (
            ["search=evopress", "search.windows=[1,x]"],
            "search.windows=[1, 'x'] must be a list, each of it a whole",
        ),
        (
            ["search=evopress", "search.generations=1.5"],
            "search.generations=1.5 must be a whole number or null",
        ),
        (["search=local", "search.first=1"], "search.first=1 must be true or false"),
    ],
)
def test_another_type_than_the_constructor_names(words: list[str], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_types(compose(["model=docs-llama", *words]).search, "search")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["auto", "evopress", "tyr", "tpe", "greedy", "nsga2"])
def test_every_default_is_of_its_type(name: str) -> None:
    check_types(compose(["model=docs-llama", f"search={name}", "+search.unknown=3"]).search, "search")


def test_what_has_no_known_type_is_left_to_it() -> None:
    check_types(OmegaConf.create({"_target_": "collections.Counter", "a": 3}), "search")


def test_types_for_type_checkers_only_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        def __init__(self, problem: Nowhere, depth: int) -> None:  # type: ignore[name-defined]  # noqa: F821
            """As a plugin may be written."""

    monkeypatch.setattr("hydra.utils.get_class", lambda name: Plugin)
    check_types(OmegaConf.create({"_target_": "some.Plugin", "depth": "deep"}), "search")


@pytest.mark.parametrize(
    ("group", "words", "said"),
    [
        ("space.experts", ["space=[experts]", "space.experts.counts=abc"], "counts=abc must be a list"),
        ("space.kv_cache", ["space=[kv_cache]", "space.kv_cache.options=[a]"], "each of it a whole number"),
        ("space.structured", ["space.structured.ffn_options=[]"], "ffn_options=[] must be a whole number"),
        ("evaluator.divergence", ["evaluator.divergence.top_k=x"], "top_k=x must be a whole number"),
        ("executor", ["executor=ray", "executor.workers=two"], "executor.workers=two must be a whole number"),
    ],
)
def test_whatever_hydra_makes_is_checked(group: str, words: list[str], said: str) -> None:
    node = OmegaConf.select(compose(["model=docs-llama", *words]), group)
    with pytest.raises(SettingError) as caught:
        instantiate(node)
    assert str(caught.value).startswith(group) and said in str(caught.value)


@pytest.mark.parametrize("name", ["structured", "sparsity", "experts", "merging", "kv_cache", "tokens"])
def test_every_space_is_made_of_its_defaults(name: str) -> None:
    assert instantiate(compose(["model=docs-llama", f"space=[{name}]"]).space[name]) is not None
