"""Conditions and order of a leaderboard, as words: nothing in them is ever run."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from autoprune.errors import SettingError, nearest

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(rf"\s*(\w+)\s*({'|'.join(COMPARE)})\s*(.*?)\s*")


def condition(rows: pd.DataFrame, text: str) -> pd.Series:
    """Which rows meet `COLUMN<=VALUE` (or <, >, >=, =, !=); what was not measured meets nothing but `!=`."""
    match = FORM.fullmatch(text)
    if match is None:
        raise SettingError(
            f"--where {text!r} is not a condition; write 'params_ratio<=0.6' or 'method=nsga2'"
        )
    name, sign, value = match.groups()
    column = rows[known(rows, name, "--where")]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        if sign not in ("=", "==", "!="):
            raise SettingError(f"--where {text!r}: {name} holds words; compare them with = or !=")
        return COMPARE[sign](column.fillna("").astype(str).str.lower(), value.lower())
    try:
        number = float(value.removesuffix("x") if name.endswith("_ratio") else value)
    except ValueError as error:
        raise SettingError(f"--where {text!r}: {value!r} is not a number, {name} holds numbers") from error
    return COMPARE[sign](column, number)


def known(rows: pd.DataFrame, name: str, option: str) -> str:
    """The name of a column; raises SettingError with the nearest one."""
    columns = [c for c in rows.columns if c not in ("group", "plan")]
    if name not in columns:
        raise SettingError(f"{option} {name}: there is no such column" + nearest(name, columns))
    return name


def met(rows: pd.DataFrame, conditions: Sequence[str]) -> pd.Series:
    """Which rows meet all conditions."""
    result = pd.Series(True, index=rows.index)
    for text in conditions:
        result &= condition(rows, text)
    return result


def ordered(rows: pd.DataFrame, by: str, reverse: bool) -> pd.DataFrame:
    """By a column, smallest first, what is missing last."""
    return rows.sort_values(by, ascending=not reverse, kind="stable", na_position="last")
