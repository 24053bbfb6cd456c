"""recovered.csv: one row a key, read back exactly; the leaderboard shows it in columns of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from autoprune.errors import LedgerError
from autoprune.report import leaderboard, recovered
from autoprune.report.rows import RECOVERED

ROW = {"key": "12345e678901", "recovery": "distill", "recovery_steps": 300, "recovery_tokens": 614400}
ROWS = pd.DataFrame(
    {
        "name": ["dense", "uniform@0.5", "front"],
        "key": ["d", "u", ROW["key"]],
        "params_ratio": [1.0, 0.5, 0.5],
        "kl_test": [0.0, 0.7, 0.5],
        "perplexity_test": [10.0, 20.0, 15.0],
        "plan": ["{}"] * 3,
        "method": ["dense", "uniform", "nsga2"],
    }
)


def _row(kl: float, **changed: object) -> dict[str, object]:
    return {**ROW, "kl_test_recovered": kl, "perplexity_test_recovered": 12.0, **changed}


def test_rows_come_back_exactly_and_the_last_of_a_key_stays(tmp_path: Path) -> None:
    assert recovered.read(tmp_path).empty
    recovered.record(tmp_path, _row(0.3))
    recovered.record(tmp_path, _row(0.2, key="other"))
    recovered.record(tmp_path, _row(0.1 + 0.2, recovery_steps=600))
    found = recovered.read(tmp_path)
    assert found.to_dict("records") == [_row(0.2, key="other"), _row(0.1 + 0.2, recovery_steps=600)]
    assert (tmp_path / recovered.FILE).read_text().splitlines()[0] == ",".join(recovered.COLUMNS)


def test_without_the_perplexity_the_cell_is_empty(tmp_path: Path) -> None:
    recovered.record(tmp_path, _row(0.3, perplexity_test_recovered=None))
    leaderboard.write(ROWS, tmp_path)
    assert leaderboard.read(tmp_path)["perplexity_test_recovered"].isna().all()


def test_the_leaderboard_keeps_the_columns_apart(tmp_path: Path) -> None:
    leaderboard.write(ROWS, tmp_path)
    plain = leaderboard.read(tmp_path)
    assert plain[list(RECOVERED)].isna().all(axis=None)
    assert "recovered" not in (tmp_path / "leaderboard.md").read_text()
    recovered.record(tmp_path, _row(0.25))
    leaderboard.write(plain, tmp_path)
    found = leaderboard.read(tmp_path)
    pd.testing.assert_frame_equal(found.drop(columns=list(RECOVERED)), plain.drop(columns=list(RECOVERED)))
    assert found["kl_test_recovered"].tolist()[2] == 0.25 and found["kl_test_recovered"].isna().sum() == 2
    head, *lines = [x for x in (tmp_path / "leaderboard.md").read_text().splitlines() if x.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in (head, *lines)]
    assert all(len(c) == len(cells[0]) for c in cells)
    shown = dict(zip(cells[0], next(c for c in cells if c[0] == "front"), strict=True))
    assert (shown["test KL"], shown["kl_test_recovered"]) == ("0.500", "0.250")
    assert shown["perplexity_test_recovered"] == "12.0"


def test_a_leaderboard_written_before_recovery_existed_is_read(tmp_path: Path) -> None:
    leaderboard.write(ROWS, tmp_path)
    path = tmp_path / "leaderboard.csv"
    pd.read_csv(path, dtype=str).drop(columns=list(RECOVERED)).to_csv(path, index=False)
    assert leaderboard.read(tmp_path)[list(RECOVERED)].isna().all(axis=None)


def test_a_file_that_is_not_ours_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / recovered.FILE).write_text("a,b\n1,2\n")
    with pytest.raises(LedgerError, match=r"recovered\.csv has no column 'key'"):
        recovered.read(tmp_path)
