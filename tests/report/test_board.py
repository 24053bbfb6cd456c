"""The leaderboard over many runs: comparable rows together, marks, seeds, recovered rows apart, broken runs listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from autoprune.cli import main
from autoprune.errors import LedgerError
from autoprune.ledger import Ledger
from autoprune.report import leaderboard
from autoprune.report.board import analysis
from autoprune.report.board.groups import Wanted, prepare
from autoprune.report.board.overlay import overlay
from autoprune.report.board.table import ALL, STABLE, read_board
from autoprune.report.canvas import INK, UNIFORM, svg

Make = Callable[..., Path]
DIVERGENCE = {"_target_": "evaluators.divergence.Divergence", "top_k": 512}


def row(name: str, size: float, kl: float, **more: Any) -> dict[str, Any]:
    key = f"{name}-{size}-{kl}"
    figures = {"params_ratio": size, "kl_selection": kl, "kl_test": kl, "kl_fitness": kl}
    return {"name": name, "key": key, "method": name.partition("@")[0], "tokens": 10, **figures, **more}


BASE = [row("dense", 1.0, 0.0), row("uniform@0.6", 0.6, 1.0), row("uniform@0.4", 0.4, 2.0)]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A finished run folder in `results/`, or one with this state of its ledger."""

    def run(
        name: str, front: list[tuple[float, float]], seed: int = 0, finished: bool = True, **settings: Any
    ) -> Path:
        path = tmp_path / "results" / name
        path.mkdir(parents=True)
        search = {"_target_": "autoprune.searchers.nsga2.NSGA2", "windows": 4}
        known = {"model": "a/tiny", "data": "text.txt", "tokens": 1000, "window": 32, "test_windows": 8}
        known |= {"search": search, "space": {"structured": {}}, "evaluator": {"divergence": DIVERGENCE}}
        known |= {
            "constraints": {},
            "objectives": ["kl", "params"],
            "calibration": {"criterion": "activation"},
        }
        OmegaConf.save({**known, "seed": seed, "out": str(path), **settings}, path / "config.yaml")
        digests = {"model": str(settings.get("model", "tiny")), "corpus": "c"}
        ledger = Ledger.create(path / "ledger.sqlite", digests)
        if finished:
            ledger.event("finished")
            rows = [*BASE, *(row("front", size, kl, method="nsga2") for size, kl in front)]
            leaderboard.write(pd.DataFrame(rows).assign(seed=seed), path)
        ledger.close()
        return path

    return run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def shown(folder: Path, **wanted: Any) -> Any:
    return prepare(read_board([folder]), Wanted(**wanted))


def test_one_table_with_the_stable_columns_first(make: Make, results: Path, tmp_path: Path) -> None:
    make("a", [(0.5, 0.7)])
    make("sweep/0", [(0.4, 0.9)], constraints={"params": "0.5x"})
    assert main(["leaderboard", str(results), "--csv", str(tmp_path / "all.csv")]) == 0
    table = pd.read_csv(tmp_path / "all.csv")
    assert tuple(table.columns[: len(STABLE)]) == STABLE and list(table.columns[: len(ALL)]) == list(ALL)
    assert len(table) == 8 and set(table["run"]) == {"a", "sweep/0"}
    second = table[table["run"] == "sweep/0"].iloc[-1]
    about = (second["model"], second["corpus"], second["space"], second["ladders"], second["criterion"])
    assert about == ("tiny", "text.txt", "structured", "nested", "activation")
    assert second["constraints"] == "params=0.5x"


@pytest.mark.parametrize(
    "other",
    [{"model": "b/other"}, {"window": 64}, {"test_windows": 16}, {"evaluator": {"divergence": {"top_k": 9}}}],
)
def test_what_is_not_comparable_has_a_table_of_its_own(make: Make, results: Path, other: Any) -> None:
    make("a", [(0.5, 0.7)])
    make("b", [(0.5, 0.1)], **other)
    rows, groups = shown(results)
    assert [len(g.families) for g in groups] == [1, 1]
    assert rows[rows["name"] == "front"]["non_dominated"].all(), "each leads its own table"


def test_dominated_rows_are_not_marked_across_runs(make: Make, results: Path) -> None:
    make("a", [(0.5, 0.7), (0.3, 1.5)])
    make("b", [(0.5, 0.6), (0.45, 0.65)])
    rows, _ = shown(results)
    marks = {(r["run"], r["params_ratio"]): r["non_dominated"] for _, r in rows.iterrows()}
    assert marks["a", 0.5] is False or not marks["a", 0.5]
    assert marks["a", 0.3] and marks["b", 0.5] and marks["b", 0.45]
    assert marks["a", 1.0] and marks["b", 1.0], "dense, in both runs"
    assert not marks["a", 0.6] and not marks["a", 0.4], "both uniform models are beaten"


def test_means_and_spread_are_over_runs_that_differ_in_the_seed_only(make: Make, results: Path) -> None:
    for seed, kl in enumerate((0.5, 0.6, 0.7)):
        make(f"s{seed}", [(0.6, kl)], seed=seed)
    make("more", [(0.6, 0.1), (0.4, 0.3)], seed=0, tokens=2000)
    _, (group,) = shown(results)
    lines = {line.label: line for line in group.seeds}
    assert set(lines) == {"uniform", "nsga2 tokens=2000", "nsga2 tokens=1000"}
    few = lines["nsga2 tokens=1000"]
    assert few.seeds == 3 and few.at[0.6].mean == pytest.approx(0.6)
    assert few.at[0.6].deviation == pytest.approx(0.1) and 0.4 not in few.at
    assert lines["nsga2 tokens=2000"].at[0.4].mean == 0.3 and lines["uniform"].at[0.4].mean == 2.0


def test_a_point_is_picked_on_selection_and_reported_on_test(make: Make, results: Path) -> None:
    path = make("a", [(0.5, 0.7), (0.55, 0.6)])
    table = leaderboard.read(path)
    table.loc[table["params_ratio"] == 0.55, "kl_selection"] = 0.9
    leaderboard.write(table, path)
    _, (group,) = shown(results)
    assert group.seeds[1].at[0.6].mean == 0.7


def test_hypervolume_has_one_reference_for_all_runs(make: Make, results: Path) -> None:
    make("a", [(0.5, 1.0)])
    make("b", [(0.5, 1.0), (0.75, 0.5)])
    rows, (group,) = shown(results)
    assert group.reference == (1.0, 2.0)
    assert group.volumes == {"a": pytest.approx(0.25), "b": pytest.approx(0.25 + 0.25 * 0.25)}
    assert set(rows[rows["name"] == "front"]["hypervolume"]) == set(group.volumes.values())
    assert rows[rows["name"] != "front"]["hypervolume"].isna().all()


def test_recovered_numbers_have_columns_of_their_own(make: Make, results: Path, tmp_path: Path) -> None:
    path = make("a", [(0.5, 0.7)])
    (path / "recovered.csv").write_text(
        "key,recovery,recovery_steps,recovery_tokens,kl_test_recovered,perplexity_test_recovered\n"
        "front-0.5-0.7,distill,300,1000,0.2,5.5\n"
    )
    leaderboard.write(leaderboard.read(path), path)  # a run's own table repeats them
    rows, (group,) = shown(results)
    after = rows[rows["recovered_from"].notna()].iloc[0]
    assert (after["name"], after["recovery"], after["kl_test_recovered"]) == ("recovered", "distill", 0.2)
    assert after["params_ratio"] == 0.5 and after["recovered_from"] == "front-0.5-0.7"
    assert after[["kl_test", "kl_selection", "kl_fitness", "perplexity_test"]].isna().all()
    before = rows[rows["recovered_from"].isna()]
    assert before[["kl_test_recovered", "perplexity_test_recovered"]].isna().all(axis=None)
    assert not after["non_dominated"] and group.volumes == {"a": pytest.approx(0.5 * 0.65)}
    assert main(["leaderboard", str(results), "--md", str(tmp_path / "x.md")]) == 0
    assert "recovered KL" in (tmp_path / "x.md").read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("key,recovery\na,b\n", "recovered.csv has no column 'recovery_steps'"),
        ("", "recovered.csv cannot be read"),
        (
            "key,recovery,recovery_steps,recovery_tokens,kl_test_recovered,perplexity_test_recovered\n"
            "a,b,1,1,good,1\n",
            "recovered.csv holds words",
        ),
    ],
)
def test_a_bad_recovery_file_is_told_and_not_fatal(
    make: Make, results: Path, content: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", [(0.5, 0.7)])
    (make("b", [(0.5, 0.7)]) / "recovered.csv").write_text(content)
    assert main(["leaderboard", str(results)]) == 0
    out = capsys.readouterr().out
    assert says in out.split("## Runs without rows")[1]


def test_unfinished_and_broken_runs_are_listed_with_their_reason(
    make: Make, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("good", [(0.5, 0.7)])
    stopped = make("stopped", [], finished=False)
    (make("cut", [(0.5, 0.7)]) / "leaderboard.csv").write_text("key\n")
    (make("torn", [(0.5, 0.7)]) / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + bytes(50))
    (make("bare", [(0.5, 0.7)]) / "leaderboard.csv").unlink()
    assert main(["leaderboard", str(results)]) == 0
    listed = capsys.readouterr().out.split("## Runs without rows")[1]
    assert f"stopped at 0 of 1,000 tokens; go on with: autoprune resume {stopped}" in listed
    for name, reason in (
        ("cut", "is not a leaderboard: it has no column"),
        ("torn", "ledger.sqlite cannot be read"),
        ("bare", "finished, but holds no leaderboard.csv"),
    ):
        line = next(text for text in listed.splitlines() if text.startswith(f"| {name} "))
        assert reason in line


def test_runs_of_equal_names_are_told_apart(make: Make, results: Path) -> None:
    paths = [make(f"{sweep}/0", [(0.5, 0.7)]) for sweep in "ab"]
    board = read_board([p.parent for p in paths])
    assert [run.name for run in board.runs] == [str(p) for p in paths]
    assert len(read_board([results, paths[0]]).runs) == 2, "named twice, counted once"


def test_sorting_and_conditions(make: Make, results: Path) -> None:
    make("a", [(0.5, 0.7), (0.3, 1.5)])
    make("b", [(0.45, 0.65)], seed=3)
    rows, _ = shown(results, by="kl_test", where=("params_ratio<=0.5x", "method=NSGA2"))
    assert rows["kl_test"].tolist() == [0.65, 0.7, 1.5]
    assert shown(results, by="kl_test", reverse=True)[0]["kl_test"].tolist()[0] == 2.0
    assert set(shown(results, where=("seed > 1", "name=front"))[0]["run"]) == {"b"}
    assert set(shown(results, where=("run!=a", "name=front"))[0]["run"]) == {"b"}
    _, (group,) = shown(results, where=("method=nsga2",))
    assert "uniform" in [line.label for line in group.seeds], "baselines stay in the comparison"
    assert set(group.shown["name"]) == {"front"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--by", "kl_tset"], "--by kl_tset: there is no such column; did you mean 'kl_test'?"),
        (
            ["--where", "parms_ratio<=1"],
            "--where parms_ratio: there is no such column; did you mean 'params_ratio'?",
        ),
        (["--where", "params_ratio"], "'params_ratio' is not a condition; write"),
        (["--where", "kl_test<low"], "'low' is not a number, kl_test holds numbers"),
        (["--where", "method<b"], "method holds words; compare them with = or !="),
        (["--where", "__import__('os').system('x')=1"], "is not a condition"),
        (["--where", "params_ratio>9"], "no searched row meets it"),
        (["--cost", "params"], "--cost params is no ratio to dense; did you mean 'params_ratio'?"),
        (["--csv", "."], "--csv . cannot be written"),
        (["--html", "file/x.html"], "--html file/x.html cannot be written: "),
        (["--md", "/proc/nowhere/x.md"], "--md /proc/nowhere/x.md cannot be written: "),
    ],
)
def test_mistakes(
    make: Make, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], says: str,
) -> None:  # fmt: skip
    make("a", [(0.5, 0.7)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["leaderboard", "results", *options]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and err.startswith("autoprune: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "results"]


def test_no_finished_run_at_all(make: Make, results: Path) -> None:
    make("a", [], finished=False)
    make("b", [], finished=False)
    with pytest.raises(LedgerError, match=r"no run is finished: a: stopped at .* \(and 1 more runs\)"):
        read_board([results])


def test_the_picture_shows_every_front_and_both_baselines(make: Make, results: Path) -> None:
    make("a", [(0.5, 0.7), (0.3, 1.5), (0.55, 0.8)])
    make("b", [(0.45, 0.65)], tokens=2000)
    _, (group,) = shown(results)
    figure = overlay(group.analysed, "params_ratio", group.families)
    drawn = {(x, y) for line in figure.axes[0].lines for x, y in zip(*line.get_data(), strict=True)}
    assert {(0.5, 0.7), (0.3, 1.5), (0.55, 0.8), (0.45, 0.65), (0.6, 1.0), (0.4, 2.0)} <= drawn
    joined = [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert 3 not in joined, "a dominated point is not on the line of its front"
    content = svg(figure)
    for words in ("dense: test KL 0", "uniform", "nsga2 tokens=1000", "nsga2 tokens=2000"):
        assert f">{words}</text>" in content
    colors = {line.get_color() for line in figure.axes[0].lines}
    assert {UNIFORM, INK} <= colors and len(colors) == 4


def test_the_page_needs_nothing_else_and_links_to_the_reports(
    make: Make, results: Path, tmp_path: Path
) -> None:
    path = make("a<b", [(0.5, 0.7)])
    (path / "report.html").touch()
    make("c", [], finished=False)
    target = tmp_path / "deep" / "all.html"
    assert main(["leaderboard", str(results), "--html", str(target), "--by", "kl_test"]) == 0
    page = target.read_text()
    assert 'href="../results/a%3Cb/report.html"' in page and "a&lt;b</a>" in page and "a<b" not in page
    assert "<svg" in page and "go on with: autoprune resume" in page and "nan" not in page.lower()
    assert "--by kl_test" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"criterion": "activation"}, "nested"),
        ({"ladder": "nested", "reference": "dense"}, "nested"),
        ({"ladder": "refit", "reference": "dense"}, "refit"),
        ({"ladder": "refit", "reference": "uniform@0.5"}, "refit (uniform@0.5)"),
    ],
)
def test_ladders_are_named(make: Make, results: Path, calibration: dict[str, str], said: str) -> None:
    make("a", [(0.5, 0.7)], calibration=calibration)
    assert set(shown(results)[0]["ladders"]) == {said}


def test_rebuilt_ladders_are_told_apart(make: Make, results: Path) -> None:
    path = make("a", [(0.5, 0.7)], calibration={"ladder": "refit", "reference": "dense"})
    frame = leaderboard.read(path)
    frame["ladders"] = frame["ladders"].where(frame["name"] != "front", "0123")
    leaderboard.write(frame, path)
    rows = shown(results)[0]
    assert set(rows[rows["name"] == "front"]["ladders"]) == {"refit (rebuilt)"}
    assert not rows[rows["name"] != "front"]["ladders"].str.contains("rebuilt").any()


def test_ratios_that_a_search_did_not_look_at_are_left_out() -> None:
    points = pd.DataFrame({"params_ratio": [0.39], "kl_selection": [0.5], "kl_test": [0.5]})
    assert analysis._picks(points, "params_ratio", [0.8, 0.6, 0.4]) == {0.4: 0.5}


def test_the_order_of_folders_changes_no_number(make: Make, results: Path) -> None:
    paths = [make(n, [(0.5, kl)]) for n, kl in (("a", 0.7), ("b", 0.6), ("c", 0.7))]
    found = []
    for order in (paths, paths[::-1]):
        rows, _ = prepare(read_board(order), Wanted(by="key"))
        found.append(
            rows.sort_values(["key", "run"])[["key", "run", "non_dominated", "hypervolume"]].to_csv(
                index=False
            )
        )
    assert len(set(found)) == 1
