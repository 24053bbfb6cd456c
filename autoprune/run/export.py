"""A point of the front as a checkpoint: built, saved, and proven by reloading it in a fresh process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from autoprune.data import as_tensor
from autoprune.errors import SettingError
from autoprune.objective import Split
from autoprune.pruning.heads import HeadLadders
from autoprune.pruning.streaming import StreamingLadders
from autoprune.report import recovered
from autoprune.report.rows import LADDERS, word
from autoprune.run import folder
from autoprune.run.int8 import SETTING, check_int8, figures_on_test, in_int8, told
from autoprune.run.prompts import HEADS_REFIT, REFIT
from autoprune.run.recovery import finish, recovered_model, section, setting_of
from autoprune.run.refitting import refit_chosen
from autoprune.run.supernets import parts_with
from autoprune.space import Plan, plan_cost

if TYPE_CHECKING:
    from autoprune.export.roundtrip import Probe, RoundTrip
    from autoprune.kernels.int8 import Rounded
    from autoprune.pruning.masks.packing import Packed
    from autoprune.recovery.distill import Distill
    from autoprune.run.pipeline import Run
    from autoprune.run.recovery import Recovered
    from autoprune.supernet import Ladders

BYTES, TIMES = ("bytes_ratio",), ("prefill_ratio", "decode_ratio")
SHOWN = (
    *("params_ratio", "params_total_ratio", "flops_ratio", "kv_ratio", "bytes_ratio"),
    *TIMES,
    *("kl_test", "perplexity_test", "accuracy_test", "macro_f1_test", "calibration_error_test"),
)
TOKENS = 48  # length of the round trip's probe


def export_plan(
    run: Run,
    row: Mapping[str, Any],
    to: Path,
    refit: bool = False,
    recovery: Distill | None = None,
    int8: bool = False,
) -> RoundTrip:
    """Write the checkpoint of a leaderboard row to `to`; raises ExportError when it does not come back equal.

    With `refit` its output projections are solved once more, in each other's company, if *selection* says that helps.
    With `recovery` it is then trained, and its figures go to the run's recovered.csv; StoppedError when the training
    diverges, with the best weights written. With `int8` its linear maps are stored in int8; KernelError where no kernel
    runs them.
    """
    from autoprune.export.checkpoint import check_destination, save_checkpoint
    from autoprune.export.int8 import prove_int8, rounded_maps
    from autoprune.export.packed import pack_model, prove_packed
    from autoprune.export.roundtrip import prove

    to, run = check_destination(to), _with_ladders(run, row)
    plan = Plan.from_json(str(row["plan"]))
    figures = {name: float(row[name]) for name in SHOWN if pd.notna(row.get(name))}
    command = _command(run, plan, to) + " --refit" * refit + " --int8" * int8
    if int8:
        _check_int8(run, plan)
    if refit:
        _check_refit(run)
    again = refit_chosen(run, plan) if refit else None
    if again is not None:
        run.progress.say(again.told())
        figures |= again.figures()
    model, outcome = _built(run, plan, None if again is None else again.ladders, to, recovery)
    if outcome is not None:  # those of before stand beside it
        figures = {n: v for n, v in figures.items() if not n.endswith("_test")}
        command += f" --recovery {outcome.settings.name} --recovery-steps {outcome.settings.steps}"
    adapter: Any = run.parts.adapter
    packed = pack_model(adapter, model, plan) if plan != plan.unmasked and not int8 else {}
    maps = rounded_maps(model, adapter.layout) if int8 else {}
    if maps:
        figures = _of_int8(run, figures, model, maps)
    card = _card(run, plan, model, figures, command, outcome, packed, maps)
    save_checkpoint(model, run.parts.loaded.tokenizer, to, card, plan, packed, maps)
    proof = to, _probe(run), int(plan_cost(plan.unmasked, _analytic(run))["params_total"])
    trip = prove_int8(model, maps, *proof) if maps else prove(model, *proof)
    if packed:
        prove_packed(adapter, model, plan, to)
    if outcome is not None:
        finish(outcome, to)
    return trip


def _command(run: Run, plan: Plan, to: Path) -> str:
    return f"autoprune export {run.path.name} --key {plan.key} --to {to.name}"


def _check_refit(run: Run) -> None:
    """Raise SettingError where what is solved again would not be what the ladders keep."""
    if isinstance(run.parts.ladders, StreamingLadders):
        raise SettingError(REFIT.format(setting="--refit"))
    if isinstance(run.parts.ladders, HeadLadders):
        raise SettingError(HEADS_REFIT.format(setting="--refit"))


def _check_int8(run: Run, plan: Plan) -> None:
    from autoprune.export.int8 import check_masks

    setting = SETTING if in_int8(run.cfg) else "--int8"
    check_int8(run.parts, setting)
    check_masks(plan, setting)


def _of_int8(
    run: Run, figures: Mapping[str, float], model: Any, maps: Mapping[str, Rounded]
) -> dict[str, float]:
    """What is still true of the figures when linear maps are in int8, and both ways' quality on *test*."""
    gone = BYTES if in_int8(run.cfg) else (*BYTES, *TIMES)
    kept = {name: value for name, value in figures.items() if name not in gone}
    both = figures_on_test(run.parts, model, maps)
    run.progress.say(told(both))
    return kept | both


def _with_ladders(run: Run, row: Mapping[str, Any]) -> Run:
    """The run with the ladders that hold the row's weights."""
    ladders = word(row, LADDERS)
    if not ladders:
        return run
    with closing(folder.open_ledger(run.path)) as ledger:
        return replace(run, parts=parts_with(run.parts, ledger, ladders, run.progress))


def _built(
    run: Run, plan: Plan, ladders: Ladders | None, to: Path, recovery: Distill | None
) -> tuple[Any, Recovered | None]:
    """The model to save, recovered where that was asked for."""
    if recovery is None:
        return run.parts.build(plan, ladders), None
    setting = setting_of(run.parts, recovery)
    model, outcome = recovered_model(
        lambda dtype: run.parts.build(plan, ladders, dtype),
        run.parts.loaded.dtype,
        setting,
        to,
        run.progress,
    )
    recovered.record(run.path, outcome.row(plan.key))
    return model, outcome


def _card(
    run: Run,
    plan: Plan,
    model: Any,
    figures: Mapping[str, float],
    command: str,
    outcome: Recovered | None,
    packed: Mapping[str, Packed],
    maps: Mapping[str, Rounded],
) -> str:
    from autoprune.export.card import int8_section, masks_section, model_card
    from autoprune.models.load import auto_class

    whole = sum(p.rows * p.columns * p.tensors["values"].element_size() for p in packed.values())
    stored = sum(p.bytes for p in packed.values())

    return model_card(
        source=str(run.cfg.model),
        plan=plan,
        figures=figures,
        command=f"{folder.command_of(run.path)}\n{command}",
        family=run.parts.adapter.shape.model_type,
        heterogeneous=model.config.model_type != run.parts.adapter.shape.model_type,
        recovered="" if outcome is None else section(outcome),
        masked=masks_section(len(packed), whole, stored) if packed else "",
        int8=int8_section(len(maps), _whole(maps), sum(m.bytes for m in maps.values())) if maps else "",
        auto=auto_class(model.config.architectures or [type(model).__name__]).__name__,
    )


def _whole(maps: Mapping[str, Rounded]) -> int:
    """Bytes of the linear maps before they were rounded."""
    return sum(m.values.numel() * m.dtype.itemsize for m in maps.values())


def choose(frame: pd.DataFrame, key: str | None, bounds: Mapping[str, object]) -> pd.Series:
    """A row by key or name (`owl@0.5`), or that of lowest selection KL within one bound on params, prefill or decode.

    Raises SettingError naming what there is.
    """
    if key is not None:
        match = frame[frame["key"].str.startswith(key) | (frame["name"] == key)]
        if not len(match):
            raise SettingError(f"--key {key} is not on the leaderboard; keys: {', '.join(frame['key'])}")
        if match["key"].nunique() > 1:
            raise SettingError(f"--key {key} fits several plans: {', '.join(match['key'].unique())}")
        return match.sort_values("kl_selection", kind="stable").iloc[0]  # one plan may be on several ladders
    metric, text = next((m, t) for m, t in bounds.items() if t is not None)
    column = f"{metric}_ratio"
    try:
        limit = float(str(text).removesuffix("x"))
    except ValueError as error:
        raise SettingError(f"--{metric} {text} is not a ratio to dense; write 0.6x") from error
    front = frame[(frame["name"] == "front") & frame[column].notna()]
    if not len(front):
        raise SettingError(f"--{metric}: this run has no measured {column}")
    within = front[front[column] <= limit + 1e-9]
    if not len(within):
        raise SettingError(f"--{metric} {text}: the smallest on the front is {front[column].min():.3f}x")
    return within.sort_values("kl_selection").iloc[0]


def _analytic(run: Run) -> Any:
    from autoprune.shape import AnalyticCosts

    return AnalyticCosts(run.parts.adapter.shape, int(run.cfg.window))


def _probe(run: Run) -> Probe:
    windows, adapter = run.parts.corpus.windows(Split.SELECTION)[:2], run.parts.adapter
    if adapter.shape.task != "text":
        return adapter.inputs(as_tensor(windows))
    cut = getattr(adapter, "prompt_len", None) is not None  # then the cache has to overflow
    return as_tensor(windows[:, : None if cut else TOKENS])
