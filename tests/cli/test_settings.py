"""Free text reaches the run unchanged, and errors are explained in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.settings import quote

TEXTS = [
    "plain",
    "/a b/c=d,e(1)'x",
    "123",
    "null-ish",
    "/données/[x]{y}.txt",
    'with "double"',
    "trailing\\",
    "a\\'b\\\\'",
    "x: y # z",
    "true",
]


@pytest.mark.parametrize("text", TEXTS)
def test_free_text_arrives_as_it_was_written(text: str) -> None:
    cfg = compose([f"model={text}", f"data={text}", f"latency.file={text}"])
    assert (cfg.model, cfg.data, cfg.latency.file) == (text, text, text)


def test_home_null_and_quotes() -> None:
    assert compose(["model=~/m"]).model == str(Path.home() / "m")
    assert compose(["model=x", "latency.file=null"]).latency.file is None
    assert quote("model='as it is'") == "model='as it is'"
    assert quote("seed=3") == "seed=3"


def test_tasks_may_be_named_in_short() -> None:
    cfg = compose(["model=x", "evaluator=[divergence,tasks]", "evaluator.tasks=[copa,piqa]"])
    assert list(cfg.evaluator.tasks.tasks) == ["copa", "piqa"]


def test_a_latency_file_may_be_named_in_short() -> None:
    cfg = compose(["model=x", "latency=~/a b/t.json", "latency.foreign=true", "latency.rounds=7"])
    assert cfg.latency.file == str(Path.home() / "a b/t.json")
    assert (cfg.latency.foreign, cfg.latency.rounds) == (True, 7)
    assert compose(["model=x", "latency={rounds: 9}"]).latency.rounds == 9


def test_a_sweep_splits_free_text_at_commas() -> None:
    assert quote("model=a,b c", sweep=True) == "model='a','b c'"
    assert quote("model=a,b c") == "model='a,b c'"


@pytest.mark.parametrize("setting", ["model=", "out=", "data="])
def test_empty_text_is_refused(setting: str) -> None:
    with pytest.raises(SettingError, match=f"{setting[:-1]}.*empty"):
        compose(["model=x", setting] if setting != "model=" else [setting])
