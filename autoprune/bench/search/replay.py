"""What a shorter run would have named its finalists: a long run is asked and told again, evaluating nothing."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.errors import LedgerError
from autoprune.ledger import Ledger
from autoprune.run.targets import TargetsDriver
from autoprune.space import Candidate


def replayed(
    driver: TargetsDriver, ledger: Ledger, budgets: Sequence[int]
) -> dict[int, tuple[Candidate, ...]]:
    """The finalists that the searcher of a one-phase run names after so many tokens; none where it names none.

    As in a study, a batch that the tokens do not pay for is not told. Raises LedgerError where the searcher proposes
    something else than the ledger holds.
    """
    searcher = driver.phase(0).searcher
    choose = getattr(searcher, "finalists", None)
    found: dict[int, tuple[Candidate, ...]] = {}
    if choose is None:  # asking again may take long, and would tell nothing
        return dict.fromkeys(budgets, ())
    spent = 0
    for number, asked in ledger.batches(0):
        recorded, results = ledger.proposals(0, number), ledger.results(0, number)
        again = searcher.ask(asked)
        if again[: len(recorded)] != recorded:
            raise LedgerError(f"{ledger.path}: replay diverges in batch {number}; remove the run")
        spent += sum(results[p.id].tokens for p in recorded)
        late = [b for b in budgets if b < spent and b not in found]
        found |= dict.fromkeys(late, tuple(choose()))
        if len(recorded) < len(again):  # its own tokens ended here
            break
        searcher.tell([results[p.id].result for p in recorded])
        found |= dict.fromkeys([b for b in budgets if b == spent and b not in found], tuple(choose()))
    return found | dict.fromkeys([b for b in budgets if b not in found], tuple(choose()))
