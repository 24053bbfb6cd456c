"""The tutorial's family, added from outside, keeps the contract and goes the whole way."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import autoprune
from autoprune.errors import SettingError, UnsupportedModelError
from autoprune.export.checkpoint import save_checkpoint
from autoprune.export.roundtrip import prove
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.run import outputs
from autoprune.shape import AnalyticCosts
from autoprune.space import plan_cost
from tests import tiny
from tests.families import SIZES, WINDOW, Family
from tests.family_case import Case
from tests.family_contract import FamilyContract

NAME = "my_starcoder2.Starcoder2Adapter"
FAMILY = Family(
    "Starcoder2Config",
    "Starcoder2ForCausalLM",
    {"window": {"sliding_window": WINDOW}},
    SIZES,
    out={"attention": "self_attn.o_proj", "ffn": "mlp.c_proj"},
    adapter=NAME,
)


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tutorial's files, a model and a text."""
    place = tmp_path_factory.mktemp("tutorial")
    tutorial = (root / "docs/tutorials/your-own-family.md").read_text()
    for name, code in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", tutorial, flags=re.DOTALL):
        (place / name).write_text(code)
    (place / "text.txt").write_text(tiny.text(60_000))
    tiny.save(FAMILY.make("window", vocab_size=tiny.VOCABULARY), place / "starcoder2")
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))


@pytest.fixture(scope="module")
def case(folder: Path) -> Case:
    return Case.of(FAMILY, FAMILY.make("window"))


class TestTutorialFamily(FamilyContract):
    pass


def test_its_checkpoint_needs_neither_autoprune_nor_the_users_files(case: Case, tmp_path: Path) -> None:
    plan = case.plans()["gone"]
    save_checkpoint(case.install(plan), None, tmp_path / "out", "", plan)
    files = {file.name for file in (tmp_path / "out").glob("*.py")}
    assert files == {
        "modeling_autoprune.py",
        "modeling_autoprune_cache.py",
        "modeling_autoprune_policies.py",
        "modeling_autoprune_prompt.py",
        "modeling_my_starcoder2.py",
    }
    parameters = int(plan_cost(plan, AnalyticCosts(case.adapter.shape))["params_total"])
    prove(case.install(plan), tmp_path / "out", tiny.token_ids((2, 14), vocabulary=61), parameters)


def test_the_tutorial_s_search_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(outputs, "_export_best", lambda run, frame: None)  # the test above does
    runpy.run_path("search.py")
    assert "front" in capsys.readouterr().out
    with pytest.raises(
        SettingError, match="adapter=my_starcoder2.Starcoder2Adapter is not a class of autoprune"
    ):
        autoprune.export("run", params=1.0, to="smaller")


def test_a_family_without_adapter_is_refused_before_its_weights_are_read(folder: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match="'starcoder2' has no adapter; supported: bert, deit, distilbert"
    ):
        load_model(str(folder / "starcoder2"))


@pytest.mark.parametrize("name", ["nowhere.Adapter", "my_starcoder2.Nothing", "Adapter", ""])
def test_an_adapter_that_cannot_be_imported_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"adapter={name} cannot be imported"):
        adapter_for(SimpleNamespace(), name)
