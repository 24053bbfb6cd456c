"""Each plain command asks the API for exactly what was typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").touch()
    return tmp_path / "r"


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("demo", ("demo", ("results/demo",), {})),
        ("demo --out d", ("demo", ("d",), {})),
        ("resume r", ("resume", ("r",), {"fork": None, "trust": False})),
        ("resume r --fork n --trust", ("resume", ("r",), {"fork": "n", "trust": True})),
        ("report r r", ("report", (["r", "r"],), {"trust": False})),
        ("report r --trust", ("report", (["r"],), {"trust": True})),
        ("export r --key ab12 --to o", ("export", ("r",), {"to": "o", "trust": False, "key": "ab12"})),
        ("export --decode=0.6x --to=o r", ("export", ("r",), {"to": "o", "trust": False, "decode": "0.6x"})),
        ("export r --params 0.6x --to o", ("export", ("r",), {"to": "o", "trust": False, "params": "0.6x"})),
        (
            "export r --key a --to o --refit",
            ("export", ("r",), {"to": "o", "trust": False, "key": "a", "refit": True}),
        ),
        (
            "export r --prefill 2x --to o --trust",
            ("export", ("r",), {"to": "o", "trust": True, "prefill": "2x"}),
        ),
        (
            "export r --key a --to o --recovery distill --recovery-steps 9",
            (
                "export",
                ("r",),
                {"to": "o", "trust": False, "key": "a", "recovery": "distill", "recovery_steps": 9},
            ),
        ),
        (
            "recover c --teacher m --data d --to o",
            (
                "recover",
                ("c",),
                {"teacher": "m", "data": "d", "to": "o", "steps": None, "seed": 0, "settings": []},
            ),
        ),
        (
            "recover c window=9 threads=2 --teacher m --data d --to o --recovery-steps 7 --seed 3",
            (
                "recover",
                ("c",),
                {
                    **{"teacher": "m", "data": "d", "to": "o", "steps": 7, "seed": 3},
                    "settings": ["window=9", "threads=2"],
                },
            ),
        ),
        (
            "recover c --teacher m --data d --to o window=9",
            (
                "recover",
                ("c",),
                {"teacher": "m", "data": "d", "to": "o", "steps": None, "seed": 0, "settings": ["window=9"]},
            ),
        ),
        (
            "study oracle m --to o window=9 --plans 3 threads=2",
            (
                "study_oracle",
                ("m",),
                {
                    **{
                        "to": "o",
                        "data": "auto",
                        "plans": 3,
                        "ratio": "0.5x",
                        "steps": 100,
                        "windows": 8,
                        "seed": 0,
                    },
                    "settings": ["window=9", "threads=2"],
                },
            ),
        ),
        ("profile m", ("profile", ("m", None, []), {})),
        ("profile m latency.batch=4 --to f", ("profile", ("m", "f", ["latency.batch=4"]), {})),
        ("zoo train n", ("zoo_train", ("n", None, None), {})),
        ("zoo train n --to d --data f", ("zoo_train", ("n", "d", "f"), {})),
        ("bench n", ("bench", ("n", []), {})),
        ("bench n --seeds 3 x=y", ("bench", ("n", ["--seeds", "3", "x=y"]), {})),
    ],
)
def test_command(run: Callable[..., Any], calls: Any, folder: Path, line: str, call: tuple[Any, ...]) -> None:
    done = run(*line.split())
    assert (done.code, done.err) == (0, "")
    assert calls.made == [call]
    assert done.out == ""
