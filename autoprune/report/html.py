"""report.html: one file that needs nothing else, and the pictures beside it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from autoprune.report import pictures, text
from autoprune.report.facts import RunFacts
from autoprune.report.files import write_text
from autoprune.report.rows import (
    PHASES,
    baselines,
    complete,
    dense,
    front,
    interval,
    number,
    quality,
    quality_label,
    size_column,
    uniform,
    word,
)
from autoprune.report.summary import beside, change, comparison, fitness_gap, headline, headline_point

RATIOS = (
    ("params_ratio", "params"),
    ("params_total_ratio", "all params"),
    ("flops_ratio", "FLOPs"),
    ("kv_ratio", "KV cache"),
    ("bytes_ratio", "bytes"),
)


@dataclass(frozen=True)
class Picture:
    """A picture with what it shows; `name` is its file under pictures/."""

    name: str
    title: str
    caption: str
    figure: Figure
    half: bool = False  # narrow enough to stand beside another


@dataclass(frozen=True)
class Cell:
    """A table cell: shown text, the value to sort by (None sorts last), smaller lines below."""

    shown: str
    value: float | str | None
    small: str = ""


def write(rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, folder: Path) -> Path:
    """Write `folder`/report.html and `folder`/pictures/*.png; returns the report's path."""
    folder = Path(folder)
    shown = _pictures(complete(rows), evaluated)
    about = f"{Path(facts.model).name} on {Path(facts.data).name} · {facts.method}, seed {facts.seed}"
    about += f" · {text.short(facts.tokens_search)} tokens"
    for picture in shown:
        pictures.save_png(picture.figure, folder / "pictures" / f"{picture.name}.png", picture.title, about)
    return write_text(folder / "report.html", render(rows, shown, facts, folder))


def template(name: str) -> Template:
    """A page beside this file; everything put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(rows: pd.DataFrame, shown: list[Picture], facts: RunFacts, folder: Path) -> str:
    """The page as text; everything but our own drawings is escaped."""
    frame = complete(rows)
    heads, lines = _table(frame)
    return template("report.html.j2").render(
        headline=headline(frame),
        pictures=[(picture, Markup(pictures.svg(picture.figure))) for picture in shown],  # noqa: S704
        unmeasured=[phase for phase in PHASES if not _measured(frame, phase)],
        against=_against(frame),
        quality=quality_label(quality(frame)),
        tested=quality(frame) == "kl_test",
        heads=heads,
        lines=lines,
        groups=_facts(frame, facts),
        facts=facts,
        export=_export(frame, folder),
        resume=f"autoprune resume {shlex.quote(str(folder))}",
    )


def _measured(frame: pd.DataFrame, phase: str) -> bool:
    """Whether any front or uniform row has this latency."""
    return bool(pd.concat([front(frame), uniform(frame)])[f"{phase}_ratio"].notna().any())


def _predicted(frame: pd.DataFrame) -> bool:
    return any(len(frame.dropna(subset=[f"{p}_pred_ms", f"{p}_ms"])) for p in PHASES)


def _pictures(frame: pd.DataFrame, evaluated: pd.DataFrame) -> list[Picture]:
    """The pictures this run has data for, the front first."""
    label = quality_label(quality(frame))
    said = f"Lower left is better. Lines: {label}."
    if len(evaluated):
        said += " Dots: every evaluated candidate at its fitness KL."
    shown = [Picture("front", "Quality against size", said, pictures.front(frame, evaluated))]
    for phase in PHASES:
        if _measured(frame, phase):
            said = (
                "Whiskers: measured intervals. Grey band: that of dense; what touches it is not told apart."
            )
            figure = pictures.latency_front(frame, phase)
            shown.append(Picture(phase, f"Quality against {phase} latency", said, figure, half=True))
    said = "The stronger the colour, the more is kept; an empty cell with 0 is a sublayer removed altogether."
    shown.append(Picture("kept", "What each model kept, block by block", said, pictures.kept(frame)))
    if _predicted(frame):
        said = "On the line the prediction used by the search was right."
        figure = pictures.predicted_against_measured(frame)
        shown.append(Picture("latency", "Predicted against measured latency", said, figure))
    return shown


def _against(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """Lines of the comparison with uniform."""
    lines: list[tuple[str, ...]] = []
    for _, row in comparison(frame).iterrows():
        lost = number(row, "reduction")
        lines.append(
            (
                text.ratio(number(row, "uniform_ratio")),
                text.kl(number(row, "uniform_kl")),
                text.ratio(number(row, "front_ratio")),
                text.kl(number(row, "front_kl")),
                text.percent(None if lost is None else -lost),
                word(row, "key") or text.MISSING,
            )
        )
    return lines


def _heads(frame: pd.DataFrame) -> list[str]:
    label = quality_label(quality(frame))
    (_, size), *others = RATIOS
    return ["model", "key", size, label, "vs uniform", "perplexity", *PHASES, *(head for _, head in others)]


def _table(frame: pd.DataFrame) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Heads and (kind, cells) of dense, then of all rows by falling size; columns never measured are left out."""
    first = dense(frame)
    body = pd.concat([baselines(frame), front(frame)]).sort_values(
        size_column(frame), ascending=False, kind="stable"
    )
    ordered = body if first is None else pd.concat([first.to_frame().T, body])
    lines = [(word(row, "name").split("@")[0], _cells(row, frame)) for _, row in ordered.iterrows()]
    filled = [
        any(cells[place].value is not None for _, cells in lines) for place in range(len(_heads(frame)))
    ]
    heads = list(compress(_heads(frame), filled))
    return heads, [(kind, list(compress(cells, filled))) for kind, cells in lines]


def _cells(row: pd.Series, frame: pd.DataFrame) -> list[Cell]:
    """One line of the table: see `_heads`."""
    ours, name, key = number(row, quality(frame)), word(row, "name"), word(row, "key")
    baseline = beside(frame, number(row, size_column(frame))) if name.startswith("front") else None
    delta = change(ours, baseline[1]) if baseline else None
    against = f"{text.kl(baseline[1])} at {text.ratio(baseline[0])}" if baseline else ""
    perplexity = number(row, "perplexity_test")
    size, *others = [Cell(text.ratio(number(row, c)), number(row, c)) for c, _ in RATIOS]
    scores = [Cell(text.kl(ours), ours), Cell(text.percent(delta), delta, against)]
    scores.append(Cell(text.digits(perplexity), perplexity))
    return [
        Cell(name, name),
        Cell(key, key or None),
        size,
        *scores,
        *(_latency(row, p) for p in PHASES),
        *others,
    ]


def _latency(row: pd.Series, phase: str) -> Cell:
    """The measured ratio, its interval below."""
    measured = number(row, f"{phase}_ratio")
    return Cell(text.ratio(measured), measured, text.bounds(interval(row, phase)))


def _facts(frame: pd.DataFrame, facts: RunFacts) -> list[tuple[str, list[tuple[str, str]]]]:
    """The circumstances, in groups of (what, value)."""
    origin = [("model", facts.model), ("data", facts.data), ("corpus digest", facts.data_digest)]
    splits = [(f"{name} split", used) for name, used in facts.splits.items()]
    data = [*origin, *splits, ("fitness-to-test gap", _gap(frame))]
    return [("Work", _work(facts)), ("Data", data), ("Machine", _machine(frame, facts))]


def _gap(frame: pd.DataFrame) -> str:
    gap = fitness_gap(frame)
    if gap is None:
        return "not measured"
    return (
        f"test KL {abs(100 * gap):.0f} % {'above' if gap >= 0 else 'below'} fitness KL, median over the front"
    )


def _machine(frame: pd.DataFrame, facts: RunFacts) -> list[tuple[str, str]]:
    lines = [("measured on", facts.machine)]
    for phase in PHASES:
        ms = number(dense(frame), f"{phase}_ms")
        if ms is not None:
            lines.append((f"dense {phase}", f"{text.digits(ms)} ms"))
    for phase, (mean, worst) in (facts.latency_error or {}).items():
        lines.append((f"{phase} prediction error", f"mean {100 * mean:.1f} %, largest {100 * worst:.1f} %"))
    return lines


def _work(facts: RunFacts) -> list[tuple[str, str]]:
    naive = facts.block_runs_naive
    share = (
        f" of {text.count(naive)} without shared prefixes ({facts.block_runs / naive:.2f}x)" if naive else ""
    )
    return [
        ("method", f"{facts.method}, seed {facts.seed}"),
        ("tokens, search", text.count(facts.tokens_search)),
        ("tokens, setup", text.count(facts.tokens_setup)),
        ("tokens, final", text.count(facts.tokens_final)),
        ("evaluations", f"{text.count(facts.evaluations)}, {text.count(facts.failed)} failed"),
        ("wall time", text.duration(facts.wall_seconds)),
        ("block runs", text.count(facts.block_runs) + share),
    ]


def _export(frame: pd.DataFrame, folder: Path) -> str:
    """The command that exports the headline's point."""
    pair = headline_point(frame)
    key = word(pair[0], "key") if pair else ""
    return f"autoprune export {shlex.quote(str(folder))} --key {shlex.quote(key) if key else 'KEY'} --to OUT"
