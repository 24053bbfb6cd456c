"""The methods that are compared: a searcher's name, and the settings that make a variant of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autoprune.errors import SettingError
from autoprune.space import digest

# A shorter run of these is the beginning of a longer one: they never read how many tokens there are.
ANYTIME = frozenset(
    {"auto", "dp", "emo", "evopress", "evopress+", "gp", "greedy", "local", "milp"}
    | {"nsga2", "nsga3", "optuna_nsga2", "random", "tpe"}
)
PUBLISHED = (
    2048,
    16384,
    65536,
)  # tokens of EvoPress' three stages for sparsity, with 64 offspring and 8/2/1 survivors
SHARES = (4, 16, 64)  # evopress/4 has a quarter of the published stages, at least one window each


@dataclass(frozen=True)
class Method:
    """A searcher with its settings, under the name that tables show."""

    name: str
    search: str
    settings: tuple[str, ...] = ()

    @property
    def anytime(self) -> bool:
        """Whether a run's state at fewer tokens is what a run of so many tokens would have come to."""
        return self.search in ANYTIME

    @property
    def folder(self) -> str:
        """A folder name that no other method has."""
        plain = re.sub(r"[^\w.+-]+", "-", self.search)
        return f"{plain}-{digest([self.search, *self.settings])[:6]}" if self.settings else plain


def parse(text: str, window: int) -> list[Method]:
    """Methods as the command line names them: `auto,evopress/16,nsga2:search.population=32`.

    After the name, each `:key=value` is a setting; commas within brackets belong to a value. `LABEL=` in front names
    the variant in tables.
    """
    words = [w.strip() for w in re.split(r",(?![^\[]*\])", text)]
    found = [_method(word, window) for word in words if word]
    names = [m.name for m in found]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise SettingError(f"--methods names {twice} twice")
    return found


def _method(word: str, window: int) -> Method:
    first, *settings = word.split(":")
    label, _, name = first.rpartition("=")
    search, _, share = name.partition("/")
    if share:
        if search != "evopress" or share not in map(str, SHARES):
            allowed = ", ".join(f"evopress/{s}" for s in SHARES)
            raise SettingError(f"--methods: {name!r} is unknown; variants by stage size are {allowed}")
        settings = [f"search.windows={list(stages(int(share), window))}", *settings]
    if bad := next((s for s in settings if not s.startswith("search.") or "=" not in s), None):
        raise SettingError(f"--methods: {bad!r} in {word!r} is not of the form search.NAME=VALUE")
    return Method(label or word, search, tuple(settings))


def stages(share: int, window: int) -> tuple[int, ...]:
    """Windows of EvoPress' stages at 1/share of the published tokens, at least one each."""
    return tuple(max(1, round(tokens / share / window)) for tokens in PUBLISHED)


def evopress(methods: Sequence[Method]) -> list[str]:
    """Names of the variants of evopress."""
    return [m.name for m in methods if m.search == "evopress"]
