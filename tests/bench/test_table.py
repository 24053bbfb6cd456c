"""What benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune import api, catalogue
from autoprune.bench import BENCHMARKS
from autoprune.bench.table import count, parser, publish, spread
from autoprune.errors import SettingError


def test_a_table_stands_under_the_command_that_remakes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new" / "x.md"
    publish("x", "What it shows.\n", ["--model", "a b"], "| a |\n|---|", to)
    text = to.read_text()
    assert text == "What it shows.\n\nRemade by: `autoprune bench x --model 'a b'`\n\n| a |\n|---|\n"
    assert capsys.readouterr().out == "| a |\n|---|\n"


def test_seeds_are_told_by_mean_and_standard_deviation() -> None:
    assert spread([0.5]) == "0.5000" and spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"


def test_arguments_have_the_usual_defaults() -> None:
    found = vars(parser("x", "A line.\n\nMore.").parse_args([]))
    assert found == {"model": "docs-llama", "data": "auto", "to": "results/bench/x.md"}
    assert vars(parser("x", None, model=False).parse_args([])) == {"to": "results/bench/x.md"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_a_line_and_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert next(p for p in catalogue.parts("bench") if p.name == name).summary
    with pytest.raises(SystemExit) as end:
        api.bench(name, ["--help"])
    assert end.value.code == 0 and "--to" in capsys.readouterr().out


def test_an_unknown_benchmark_is_a_mistake() -> None:
    with pytest.raises(SettingError, match="'serch' is unknown.*search"):
        api.bench("serch", [])


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--seeds", "two"], ["--sed", "3"]])
def test_a_mistake_in_an_argument_is_one_line(wrong: list[str]) -> None:
    found = parser("some", "Does something.")
    found.add_argument("--seeds", type=count, default=3)
    with pytest.raises(SettingError, match="^bench some: ") as told:
        found.parse_args(wrong)
    assert "\n" not in str(told.value)
