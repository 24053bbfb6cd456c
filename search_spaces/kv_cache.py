"""The KV-cache space: what every block's cache keeps of the tokens in it once a prompt is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from autoprune.errors import SettingError, nearest
from autoprune.kv_policy import FULL, POLICIES, Accumulated, KeyChannels, KVPolicy, Streaming, Window
from autoprune.shape import Shape
from autoprune.space import OptionGene

SIXTEENTHS = (1, 2, 3, 4, 6, 8, 12)  # of the window: budgets by default
EIGHTHS = (2, 3, 4, 5, 6)  # of the head size: channels by default


class KVCache:
    """What every block's KV cache keeps of the tokens in it; the last option keeps all and is exact.

    policy: window (first and newest tokens), accumulated (newest and most attended to), streaming (whole KV groups,
    the others as window), key_channels (of older keys the channels that matter); options: tokens kept (window,
    accumulated), KV groups that keep everything (streaming), channels (key_channels) of each block, besides all (null:
    from a sixteenth to three quarters of the window, every number of groups, from a quarter to three quarters);
    sink: first tokens that always stay (window, streaming); recent: newest tokens that always stay;
    forgetting: what is left of a token's attention after one more step (accumulated; 1: nothing is forgotten).
    """

    def __init__(
        self,
        policy: str = "window",
        options: Sequence[int] | None = None,
        sink: int = 4,
        recent: int = 8,
        forgetting: float = 0.95,
    ) -> None:
        named = {p.name: p for p in POLICIES}
        if policy not in named:
            raise SettingError(f"space.kv_cache.policy={policy} is unknown" + nearest(policy, named))
        for name, value, least in (("sink", sink, 0), ("recent", recent, 1)):
            if value < least:
                raise SettingError(f"space.kv_cache.{name}={value} must be at least {least}")
        if not 0 <= forgetting <= 1:
            raise SettingError(f"space.kv_cache.forgetting={forgetting} must be from 0 to 1")
        if options is not None and (not options or list(options) != sorted({int(o) for o in options})):
            raise SettingError(f"space.kv_cache.options={list(options)} must rise, and there must be some")
        self.policy: type[KVPolicy] = named[policy]
        self.wanted = None if options is None else tuple(int(o) for o in options)
        self.sink, self.recent, self.forgetting = sink, recent, forgetting
        self.window: int | None = None

    def for_window(self, tokens: int) -> KVCache:
        """The same for windows of so many tokens: a budget of as many keeps all."""
        bound = copy.copy(self)
        bound.window = tokens
        return bound

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The options of the policy's own setting, all included."""
        full, least = self._full(shape), self._least()
        given = self._defaults(shape) if self.wanted is None else self.wanted
        for option in given:
            if not least <= option < full:
                raise SettingError(
                    f"space.kv_cache.options={list(given)}: policy={self.policy.name} takes "
                    f"{least}{self._why()} to {full - 1}; {full}, all, is added"
                )
        return {self.policy.gene: (*given, full)}

    def genes(self, shape: Shape) -> tuple[OptionGene, ...]:
        """One gene a block."""
        options = self.options(shape)[self.policy.gene]
        return tuple(
            OptionGene(block, "attention", self.policy.gene, options) for block in range(shape.blocks)
        )

    def settled(self, shape: Shape) -> Mapping[str, int | float]:
        """What tells the policy, and the option that keeps all."""
        own: dict[type[KVPolicy], dict[str, int | float]] = {
            Window: {"kv_sink": self.sink},
            Accumulated: {"kv_recent": self.recent, "kv_forgetting": self.forgetting},
            Streaming: {"kv_sink": self.sink, "kv_recent": self.recent},
            KeyChannels: {"kv_recent": self.recent},
        }
        return {FULL: self._full(shape), **own[self.policy]}

    def _full(self, shape: Shape) -> int:
        if self.policy is Streaming:
            return shape.kv_groups
        if self.policy is KeyChannels:
            return shape.head_dim
        assert self.window is not None, "for_window() comes first"
        return self.window

    def _least(self) -> int:
        return {Window: self.sink + 1, Accumulated: self.recent + 1, Streaming: 0, KeyChannels: 1}[
            self.policy
        ]

    def _why(self) -> str:
        return {Window: f" (sink={self.sink} and one)", Accumulated: f" (recent={self.recent} and one)"}.get(
            self.policy, ""
        )

    def _defaults(self, shape: Shape) -> tuple[int, ...]:
        full, least = self._full(shape), self._least()
        if self.policy is Streaming:
            return tuple(range(full))
        if self.policy is KeyChannels:
            return tuple(sorted({max(least, full * e // 8) for e in EIGHTHS} - {full}))
        found = sorted({full * s // 16 for s in SIXTEENTHS if least <= full * s // 16 < full})
        if not found:
            raise SettingError(f"window={full} is too short for space=[kv_cache]{self._why()}")
        return tuple(found)
