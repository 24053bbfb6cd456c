"""The table of proxies: plans of any size and of one, the parameter count beside every figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoprune.bench import proxies
from autoprune.bench.search.runs import Setting
from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.objective import Array
from autoprune.progress import Progress
from autoprune.run.parts import Parts, open_parts


@pytest.fixture
def words(setting: Setting) -> list[str]:
    return [f"model={setting.model}", f"data={setting.data}", "latency.mode=off", *setting.settings]


@pytest.fixture
def parts(words: list[str]) -> Parts:
    with Progress(quiet=True) as progress:
        return open_parts(compose(words), progress)


def test_plans_of_any_size_and_of_one(parts: Parts) -> None:
    space = parts.space(None)
    whole = space.cost(space.dense)["params"]

    def sizes(ratio: float | None) -> Array:
        found = proxies.draw(space, 12, np.random.default_rng(0), ratio)
        assert len(set(found)) == 12
        return np.array([space.cost(c)["params"] for c in found]) / whole

    assert np.ptp(sizes(None)) > 0.3
    close = sizes(0.6)
    assert np.ptp(close) <= proxies.CLOSE and close.min() >= 0.58 and close.max() <= 0.6 + 1e-9
    with pytest.raises(SettingError, match="the space has no so many at 0.001; ask for fewer"):
        proxies.draw(space, 4, np.random.default_rng(0), 0.001)


def test_the_table(
    setting: Setting, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = proxies.compose
    monkeypatch.setattr(proxies, "compose", lambda given: original([*given, *setting.settings]))
    to = tmp_path / "x.md"
    plain = ["--model", setting.model, "--data", setting.data, "--plans", "10", "--selection", "2"]
    proxies.main([*plain, "--to", str(to)])
    lines = [line for line in to.read_text().splitlines() if line.startswith("|")][2:]
    table = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines}
    assert list(table) == ["params", "kl", *proxies.PROXIES]
    base = {(cells[3], cells[6]) for cells in table.values()}
    assert len(base) == 1 and base == {tuple(table["params"][i].split()[0] for i in (1, 4))}
    assert not any("constant" in cells or "–" in cells for cells in table.values())
    assert float(table["kl"][1].split()[0]) < -0.7  # the same quality on another window, its sign turned
    with pytest.raises(SettingError, match="--plans 3 must be at least 4"):
        proxies.main([*plain[:4], "--plans", "3"])
