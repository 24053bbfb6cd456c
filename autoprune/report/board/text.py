"""A board as text: for the terminal (what is not dominated) or for a file (everything)."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.report import text
from autoprune.report.board import words
from autoprune.report.board.groups import Group
from autoprune.report.board.overlay import COSTS
from autoprune.report.board.table import MARK, is_baseline
from autoprune.runs import Seen

NOTE = (
    "Ratios are to dense; params counts block parameters. ● marks rows that no other row of the table beats in both "
    "{cost} and test KL. Hypervolume: the share of the box between zero and the reference that a front covers. "
    "Means ± standard deviations are over runs that differ only in their seed; at each ratio every run's model of "
    "lowest selection KL that is no larger, in brackets its change against uniform. Recovered models have columns of "
    "their own and are not ranked with the others."
)


def markdown(groups: Sequence[Group], unread: Sequence[Seen], cost: str, everything: bool) -> str:
    """The tables of all groups, then the runs that have no rows; unless `everything`, dominated rows are counted."""
    parts = [part for group in groups for part in _group(group, cost, everything)]
    if unread:
        parts += ["## Runs without rows", words.table(*words.unread_cells(unread))]
    return "\n\n".join(["# Leaderboard", *parts, NOTE.format(cost=COSTS[cost])]) + "\n"


def _group(group: Group, cost: str, everything: bool) -> list[str]:
    shown = group.shown
    if not everything:
        recovered = shown["recovered_from"].notna()
        shown = shown[shown[MARK] | is_baseline(shown) | recovered]
    hidden = len(group.shown) - len(shown)
    parts = [f"## {group.title}", *([f"All rows: {group.shared}."] if group.shared else [])]
    if group.seeds:
        parts.append(words.table(*words.seed_cells(group.seeds)))
    if group.reference:
        at = f"{COSTS[cost]} {text.ratio(group.reference[0])} and test KL {text.kl(group.reference[1])}"
        parts.append(f"Hypervolume reference: {at}.")
    parts.append(words.table(*words.cells(shown)))
    if hidden:
        parts.append(f"{hidden} dominated rows are not shown; --all shows them.")
    return parts
