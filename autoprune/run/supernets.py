"""The supernets of phases: built, noted in the ledger, and found again by the name of their ladders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoprune.errors import LedgerError, SettingError
from autoprune.ledger import Ledger
from autoprune.run.parts import Parts
from autoprune.study import Phase, SupernetSpec

if TYPE_CHECKING:
    from autoprune.progress import Progress

SUPERNET = "supernet"  # the ledger's event: a phase has ladders of its own


def check_rebuildable(parts: Parts, phase: Phase) -> None:
    """Raise SettingError when the settings say of ladders what the phase decides itself."""
    settings = parts.cfg.calibration
    wanted = {"ladder": "refit"} if phase.supernet is not None or len(settings.rounds) > 1 else {}
    wanted |= {"reference": "dense"} if phase.supernet is not None else {}  # of rounds the first may have one
    for name, allowed in wanted.items():
        if settings[name] != allowed:
            raise SettingError(
                f"calibration.{name}={settings[name]}: this search refits ladders behind the plans it finds; "
                f"allowed: {allowed}"
            )


def opened(parts: Parts, ledger: Ledger, phase: Phase, progress: Progress) -> Parts:
    """The run's parts with the supernet of a phase, which the ledger notes.

    Raises LedgerError when it notes another one: then the phase's results are of other models.
    """
    if phase.supernet is None:
        return parts
    rebuilt = parts.rebuilt(phase.supernet, progress)
    noted = next((e for e in ledger.events(SUPERNET) if e["number"] == phase.number), None)
    here = {"ladders": rebuilt.ladder_folder.name, "space": phase.space.digest()}
    if noted is None:
        ledger.event(SUPERNET, number=phase.number, spec=phase.supernet.to_json(), **here)
    for name, value in here.items() if noted is not None else ():
        if noted is not None and noted[name] != value:
            raise LedgerError(
                f"{ledger.path.parent}: the {name} of phase {phase.number} are {noted[name]} in the ledger, now they "
                f"are {value}; start a new run from it with `autoprune resume --fork NEW`"
            )
    return rebuilt


def ladders_by_phase(ledger: Ledger) -> dict[int, str]:
    """The names of ladders that phases have for themselves; the others use the run's own, whose name here is empty."""
    return {int(e["number"]): str(e["ladders"]) for e in ledger.events(SUPERNET)}


def parts_with(parts: Parts, ledger: Ledger, ladders: str, progress: Progress) -> Parts:
    """The run's parts with the ladders of this name; raises LedgerError when the ledger knows of none."""
    if not ladders:
        return parts
    noted = next((e for e in ledger.events(SUPERNET) if e["ladders"] == ladders), None)
    if noted is None:
        raise LedgerError(f"{ledger.path.parent}: no phase had ladders {ladders}")
    rebuilt = parts.rebuilt(SupernetSpec.from_json(str(noted["spec"])), progress)
    if rebuilt.ladder_folder.name != ladders:
        raise LedgerError(
            f"{ledger.path.parent}: ladders {ladders} come out as {rebuilt.ladder_folder.name} now; "
            "was it made with another version?"
        )
    return rebuilt
