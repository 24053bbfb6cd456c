"""Allocators in a run: rows of the leaderboard, references of ladders, plans to start from and to export."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.api import export, run_config
from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.export.checkpoint import PLAN_FILE
from autoprune.front import Front
from autoprune.objective import Constraint
from autoprune.progress import Progress
from autoprune.run.parts import Parts, open_parts
from autoprune.run.seeds import seed_candidates
from autoprune.space import Plan
from tests import tiny

WORDS = ("window=16", "sequences=4", "calibration.tokens=512", "latency.mode=off", "quiet=true")
SMALL = (
    "tokens=2000",
    "search=random",
    "selection_windows=4",
    "test_windows=4",
    "finalists=4",
    "uniform=[0.7,0.5]",
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Block 1 has a few large weights."""
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "text.txt").write_text(tiny.text(40_000))
    model = tiny.llama(blocks=2, noise=0.3)
    model.model.layers[1].mlp.up_proj.weight[::5, ::7] *= 40
    tiny.save(model, folder / "model")
    return [f"model={folder / 'model'}", f"data={folder / 'text.txt'}", *WORDS]


def opened(given: list[str], *settings: str) -> Parts:
    return open_parts(compose([*given, "out=unused", *settings]), Progress(quiet=True))


def test_a_run_shows_and_exports_them_by_name(given: list[str], tmp_path: Path) -> None:
    cfg = compose([*given, *SMALL, "baselines=[owl,uniform,magnitude]", f"out={tmp_path / 'run'}"])
    run_config(cfg, "autoprune")
    rows = Front(tmp_path / "run").frame().set_index("name")
    names = [f"{name}@{ratio}" for name in ("owl", "uniform", "magnitude") for ratio in (0.7, 0.5)]
    assert set(names) == {n for n in rows.index if "@" in n}
    assert rows.loc[names, "kl_test"].gt(0).all() and rows.loc["owl@0.5", "params_ratio"] <= 0.5
    shown = (tmp_path / "run" / "leaderboard.md").read_text()
    assert all(f"| {name} |" in shown for name in names)
    assert ">owl@0.5</td>" in (tmp_path / "run" / "report.html").read_text()
    to = export(tmp_path / "run", to=tmp_path / "owl", key="owl@0.5")
    plan = Plan.from_json((to / PLAN_FILE).read_text())
    assert plan.key == rows.loc["owl@0.5", "key"] != rows.loc["uniform@0.5", "key"]


def test_ladders_may_be_refit_behind_one(given: list[str]) -> None:
    reference = opened(given, "calibration.reference=owl@0.6").recipe.reference
    assert reference is not None
    widths = [w for _, w in reference.widths()]
    assert widths[1] > widths[0], "the block with outliers keeps more"
    for text, line in (
        ("owl@small", "calibration.reference=owl@small: write a ratio, as in owl@0.5"),
        ("stun@0.5", "calibration.reference: stun needs experts among what the space changes"),
        ("owls@0.5", r"nor a baseline@RATIO \(uniform, owl, "),
    ):
        with pytest.raises(SettingError, match=line):
            opened(given, f"calibration.reference={text}")
    with pytest.raises(SettingError, match="calibration.reference=owl@0.6 keeps all units"):
        opened(given, "calibration.reference=owl@0.6", "space=[sparsity]")


def test_a_search_starts_from_those_it_names(given: list[str]) -> None:
    parts = opened(given, "baselines=[uniform,owl]")
    space = parts.space(None)
    limit = Constraint("params", 0.6 * space.cost(space.dense)["params"])
    with_owl, without = (seed_candidates(space, [limit], [], 0, found) for found in (parts.allocations(), ()))
    assert set(without) < set(with_owl) and opened(given).allocations() == []
    with pytest.raises(SettingError, match="baselines: stun needs experts"):
        opened(given, "baselines=[stun]").allocations()
