"""Supernets of phases: built as their spec says, noted, found again, and refused when they are others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune.config import compose
from autoprune.errors import LedgerError, SettingError
from autoprune.ledger import Ledger
from autoprune.progress import Progress
from autoprune.pruning.ladders import OUTPUT
from autoprune.pruning.refit import FixedWeights, refit_plan
from autoprune.run import refitting
from autoprune.run.parts import Parts, open_parts
from autoprune.run.supernets import SUPERNET, check_rebuildable, ladders_by_phase, opened, parts_with
from autoprune.space import Kind, Plan, SublayerPlan
from autoprune.study import Budget, Phase, SupernetSpec
from tests import tiny

OPTIONS = {"block1.ffn.width": (9, 15, 21), "block2.ffn.width": (6, 7)}
LEFT, RIGHT = Plan.of([(1, 12), (2, 15), (1, 12)]), Plan.of([(2, 36), (2, 15), (1, 12)])
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(noise=0.3), folder / "model")
    words = ("window=16", "sequences=4", "calibration.tokens=1024", "latency.mode=off", "out=unused")
    return open_parts(compose([f"model={folder / 'model'}", f"data={folder / 'text.txt'}", *words]), QUIET)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger.create(tmp_path / "ledger.sqlite", {})) as found:
        yield found


def phase(parts: Parts, spec: SupernetSpec | None, number: int = 0) -> Phase:
    space = parts.space(None).with_options({} if spec is None else spec.options)
    searcher: Any = None
    return Phase(number, space, searcher, (), (), Budget(), 16, spec)


def output(parts: Parts, block: int, kind: Kind, count: int) -> torch.Tensor:
    name = "kv_groups" if kind == "attention" else "width"
    return parts.ladders.weights(block, SublayerPlan.of(kind, **{name: count}))[OUTPUT[kind]]


def test_what_an_earlier_block_keeps_changes_the_ladders_after_it_and_none_before(parts: Parts) -> None:
    """Error accumulation that really acts: block 0's option reaches the statistics and weights of blocks 1 and 2."""
    left, right = (parts.rebuilt(SupernetSpec(OPTIONS, plan), QUIET) for plan in (LEFT, RIGHT))
    assert torch.equal(output(left, 0, "attention", 1), output(right, 0, "attention", 1))
    for block, kind, count in ((1, "attention", 1), (1, "ffn", 15), (2, "attention", 1), (2, "ffn", 7)):
        assert not torch.allclose(
            output(left, block, kind, count),  # type: ignore[arg-type]
            output(right, block, kind, count),  # type: ignore[arg-type]
            rtol=1e-2,
        )


def test_a_rebuilt_ladder_has_the_options_of_its_sites(parts: Parts) -> None:
    rebuilt = parts.rebuilt(SupernetSpec(OPTIONS, LEFT), QUIET)
    held = {(b, c) for b, kind, c in rebuilt.ladders._own if kind == "ffn"}
    assert {c for b, c in held if b == 1} == {9, 15, 21} and {c for b, c in held if b == 2} == {6, 7}
    assert {c for b, c in held if b == 0} == set(parts.space(None).genes[1].options) - {0, tiny.FFN}  # type: ignore[union-attr]
    assert (
        rebuilt.ladder_folder != parts.ladder_folder
        and rebuilt.digests["ladders"] != parts.digests["ladders"]
    )
    following = parts.rebuilt(SupernetSpec(OPTIONS, LEFT, follow=True), QUIET)
    assert following.ladder_folder.name not in (rebuilt.ladder_folder.name, parts.ladder_folder.name)
    assert not torch.allclose(output(following, 1, "ffn", 15), output(rebuilt, 1, "ffn", 15), rtol=1e-2)


def test_a_plan_is_not_refit_behind_itself_twice(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[Plan] = []

    def spied(adapter: Any, plan: Plan, *others: Any) -> FixedWeights:
        solved.append(plan)
        return refit_plan(adapter, plan, *others)

    monkeypatch.setattr(refitting, "refit_plan", spied)
    sites = {f"block{b}.ffn.width": (w,) for b, (_, w) in enumerate(LEFT.widths())}
    for follow, plan in ((True, LEFT), (True, RIGHT), (False, LEFT)):
        rebuilt = parts.rebuilt(SupernetSpec({**OPTIONS, **sites}, LEFT, follow), QUIET)
        run: Any = SimpleNamespace(cfg=parts.cfg, parts=rebuilt)
        found = refitting.refit_chosen(run, plan)
        assert (found.after == found.before) == (follow and plan == LEFT) == ("nothing left" in found.told())
    assert solved == [RIGHT, LEFT]


def test_the_run_s_own_ladders_are_no_news(parts: Parts, ledger: Ledger) -> None:
    assert opened(parts, ledger, phase(parts, None), QUIET) is parts
    assert not ledger.events(SUPERNET) and ladders_by_phase(ledger) == {}


def test_they_are_noted_once_and_found_again(parts: Parts, ledger: Ledger) -> None:
    wanted = phase(parts, SupernetSpec(OPTIONS, LEFT), 3)
    first = opened(parts, ledger, wanted, QUIET)
    again = opened(parts, ledger, wanted, QUIET)
    assert first.digests == again.digests and len(ledger.events(SUPERNET)) == 1
    name = ladders_by_phase(ledger)[3]
    assert parts_with(parts, ledger, name, QUIET).ladder_folder == first.ladder_folder
    assert parts_with(parts, ledger, "", QUIET) is parts
    with pytest.raises(LedgerError, match="no phase had ladders 0123"):
        parts_with(parts, ledger, "0123", QUIET)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (SupernetSpec(OPTIONS, RIGHT), "the ladders of phase 0 are"),
        (SupernetSpec({**OPTIONS, "block0.ffn.width": (6, 12)}, LEFT), "the ladders of phase 0 are"),
    ],
)
def test_other_ladders_than_the_ledger_s_are_refused(
    parts: Parts, ledger: Ledger, other: SupernetSpec, said: str
) -> None:
    opened(parts, ledger, phase(parts, SupernetSpec(OPTIONS, LEFT)), QUIET)
    with pytest.raises(LedgerError, match=said):
        opened(parts, ledger, phase(parts, other), QUIET)


def test_a_space_takes_other_options_by_gene_name(parts: Parts) -> None:
    space = parts.space(None)
    other = space.with_options(OPTIONS)
    named = {g.name: g.options for g in other.genes}  # type: ignore[union-attr]
    assert OPTIONS.items() <= named.items() and other.digest() != space.digest()
    with pytest.raises(Exception, match="the space has no gene block9.ffn.width"):
        space.with_options({"block9.ffn.width": (1,)})


@pytest.mark.parametrize("setting", ["ladder=nested", "reference=uniform@0.5"])
def test_what_the_phase_decides_may_not_be_set(parts: Parts, setting: str) -> None:
    cfg = compose(["model=x", "data=y", f"calibration.{setting}"])

    class Given:
        pass

    given: Any = Given()
    given.cfg = cfg
    check_rebuildable(given, phase(parts, None))
    if (
        setting == "ladder=nested"
    ):  # of rounds the first has the run's own ladders, and they may have a reference
        cfg.calibration.rounds = [1.0, 1.0]
        with pytest.raises(SettingError, match="calibration.ladder=nested: this search refits"):
            check_rebuildable(given, phase(parts, None))
    with pytest.raises(SettingError, match=f"calibration.{setting}: this search refits"):
        check_rebuildable(given, phase(parts, SupernetSpec(OPTIONS, LEFT)))
