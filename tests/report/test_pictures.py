"""Each picture shows its data and both baselines, and is the same every time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from autoprune.report import pictures
from autoprune.report.canvas import FRONT, INK, UNIFORM


def words(figure: Figure) -> list[str]:
    """Every text the SVG shows."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", pictures.svg(figure))


def drawn(figure: Figure, color: str, axis: int = 0) -> list[tuple[float, float]]:
    """The marked points of one colour."""
    lines = [
        x
        for x in figure.axes[axis].lines
        if x.get_color() == color and x.get_marker() not in ("None", None, "")
    ]
    return [
        (float(x), float(y))
        for line in lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def every(rows: pd.DataFrame, evaluated: pd.DataFrame) -> dict[str, Figure]:
    return {
        "front": pictures.front(rows, evaluated),
        "decode": pictures.latency_front(rows, "decode"),
        "kept": pictures.kept(rows),
        "latency": pictures.predicted_against_measured(rows),
    }


def test_every_picture_names_dense_and_uniform(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    for name, figure in every(rows, evaluated).items():
        shown = words(figure)
        assert any("dense" in word for word in shown), name
        assert any("uniform" in word for word in shown), name


def test_the_front_is_drawn_where_it_is(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    figure = pictures.front(rows, evaluated)
    for name, color in (("front", FRONT), ("uniform@", UNIFORM)):
        part = rows[rows["name"].str.startswith(name)]
        assert sorted(drawn(figure, color)) == sorted(zip(part["params_ratio"], part["kl_test"], strict=True))
    assert [x for x, _ in drawn(figure, INK)] == [1.0]
    assert len(figure.axes[0].collections[0].get_offsets()) == len(evaluated)


def test_another_front_is_another_picture(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    before = pictures.svg(pictures.front(rows, evaluated))
    rows.loc[8, "kl_test"] *= 1.3
    assert pictures.svg(pictures.front(rows, evaluated)) != before


def test_saving_a_png_first_changes_nothing(rows: pd.DataFrame, tmp_path: Path) -> None:
    figure = pictures.latency_front(rows, "decode")
    before = pictures.svg(figure)
    pictures.save_png(figure, tmp_path / "x.png")
    assert pictures.svg(figure) == before


def test_a_cloud_of_many_is_a_bitmap(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    many = pd.concat([evaluated] * 20)
    content = pictures.svg(pictures.front(rows, many))
    assert "data:image/png;base64," in content
    assert len(content) < 400_000


def test_whiskers_span_the_measured_interval(rows: pd.DataFrame) -> None:
    figure = pictures.latency_front(rows, "decode")
    row = rows[rows["name"] == "front"].iloc[4]
    ends = [tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_ydata()[0] == row["kl_test"]]
    full = rows["decode_ms"][0]
    assert any(np.allclose(pair, (row["decode_low"] / full, row["decode_high"] / full)) for pair in ends)


def test_the_map_tells_what_a_block_kept(rows: pd.DataFrame) -> None:
    figure = pictures.kept(rows)
    last = json.loads(rows[rows["name"] == "front"].iloc[-1]["plan"])["blocks"]
    lines = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    place = figure.axes[1].get_yticks()[[i for i, x in enumerate(lines) if rows["key"][20] in x][0]]
    cells = {t.get_position(): t.get_text() for t in figure.axes[1].texts}
    assert [cells[(b, place)] for b in range(12)] == [str(b["ffn"]["width"]) for b in last]


def test_experts_are_mapped_where_plans_count_them(rows: pd.DataFrame) -> None:
    assert len(pictures.kept(rows).axes) == 2
    for index, text in rows["plan"].dropna().items():
        blocks = json.loads(text)["blocks"]
        for at, block in enumerate(blocks):
            block["ffn"] |= {"experts": 0 if index == 1 else at + 2, "experts_per_token": 2}
        rows.loc[index, "plan"] = json.dumps({"blocks": blocks})
    axes = pictures.kept(rows).axes
    assert [axis.get_title(loc="left") for axis in axes[2:]] == ["Experts kept", "Experts per token"]
    assert {"0", "2", "13"} <= {t.get_text() for t in axes[2].texts}


def test_shades_follow_the_options(rows: pd.DataFrame) -> None:
    first = pictures.svg(pictures.kept(rows, {"kv_groups": (0, 3), "width": (0, 512)}))
    assert first == pictures.svg(pictures.kept(rows))
    assert first != pictures.svg(pictures.kept(rows, {"kv_groups": (0, 3), "width": (0, 1024)}))


def test_more_kept_is_a_deeper_shade(rows: pd.DataFrame) -> None:
    axis = pictures.kept(rows).axes[1]
    shades = {}
    for text, patch in zip(axis.texts, axis.patches, strict=True):
        shades.setdefault(int(text.get_text()), set()).add(tuple(patch.get_facecolor()))
    assert all(len(colors) == 1 for colors in shades.values())
    assert shades.pop(0) == {(0.0, 0.0, 0.0, 0.0)}
    light = [sum(next(iter(shades[width]))[:3]) for width in sorted(shades)]
    assert light == sorted(set(light), reverse=True)


def test_points_that_cannot_be_drawn_are_left_out(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    evaluated.loc[:2, "kl"] = [np.inf, np.nan, 0.0]
    figure = pictures.front(rows, evaluated)
    assert len(figure.axes[0].collections[0].get_offsets()) == len(evaluated) - 3
    assert not pictures.front(rows, pd.DataFrame()).axes[0].collections


def test_at_most_six_front_points_are_mapped(rows: pd.DataFrame) -> None:
    labels = [label.get_text() for label in pictures.kept(rows).axes[0].get_yticklabels()]
    keys = set(rows[rows["name"] == "front"]["key"])
    assert sum(label.split()[-1] in keys for label in labels) == 6


def test_other_plans_are_said_to_have_no_map(rows: pd.DataFrame) -> None:
    rows["plan"] = '{"blocks":[{"attention":{"sparsity":3},"ffn":{"sparsity":2}}]}'
    assert any("No plans" in word for word in words(pictures.kept(rows)))


def test_many_blocks_are_shaded_without_numbers(rows: pd.DataFrame) -> None:
    for index, text in rows["plan"].items():
        rows.loc[index, "plan"] = json.dumps({"blocks": json.loads(text)["blocks"] * 4})
    assert not pictures.kept(rows).axes[0].texts


@pytest.mark.parametrize("gone", ["prefill", "decode", "kl_", "plan"])
def test_what_was_not_measured_is_not_drawn(rows: pd.DataFrame, evaluated: pd.DataFrame, gone: str) -> None:
    rest = rows.drop(columns=[c for c in rows if c.startswith(gone)])
    for figure in every(rest, evaluated.iloc[:0]).values():
        assert "nan" not in pictures.svg(figure).lower()


def test_svg_is_the_same_every_time_and_self_contained(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    again = every(rows, evaluated)
    for name, figure in every(rows, evaluated).items():
        content = pictures.svg(figure)
        assert content == pictures.svg(again[name])
        assert "http" not in content
        ids = re.findall(r' id="([^"]*)"', content)
        assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', content)) <= set(ids)
        assert len(ids) == len(set(ids))


def test_colours_can_be_restyled_by_the_page(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    content = pictures.svg(pictures.front(rows, evaluated))
    assert f"var(--front, {FRONT})" in content
    assert not re.search(rf"(?<!, ){FRONT}", content)


def test_dollar_signs_are_no_formula(rows: pd.DataFrame) -> None:
    rows.loc[1, "key"] = "$x^2$"
    assert any("$x^2$" in word for word in words(pictures.kept(rows)))


def test_png(rows: pd.DataFrame, tmp_path: Path) -> None:
    pictures.save_png(pictures.latency_front(rows, "prefill"), tmp_path / "deep" / "x.png")
    assert (tmp_path / "deep" / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.png"]


def test_what_another_point_beats_is_not_on_the_line(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    """A front that was searched for another cost would zigzag."""
    rows.loc[8, "kl_test"] *= 10
    lines = [x for x in pictures.front(rows, evaluated).axes[0].lines if x.get_color() == FRONT]
    joined = [len(x.get_xdata()) for x in lines if x.get_linestyle() == "-"]
    alone = [set(x.get_ydata()) for x in lines if x.get_linestyle() == "None"]
    assert joined == [19] and rows["kl_test"][8] in alone[0]


def test_a_picture_that_stands_alone_has_a_title(rows: pd.DataFrame, tmp_path: Path) -> None:
    figure = pictures.latency_front(rows, "decode")
    before = pictures.svg(figure)
    pictures.save_png(figure, tmp_path / "bare.png")
    pictures.save_png(figure, tmp_path / "titled.png", "Quality", "of a $model$")
    heights = [int.from_bytes((tmp_path / f"{n}.png").read_bytes()[20:24]) for n in ("bare", "titled")]
    assert heights[1] > heights[0] + 50
    assert pictures.svg(figure) == before, "the page has titles of its own"


def test_models_next_to_dense_leave_room_for_the_others(rows: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    rows.loc[1, "kl_test"] = 1e-9
    low, high = pictures.front(rows, evaluated).axes[0].get_ylim()
    assert low > rows["kl_test"].max() / 50_000
