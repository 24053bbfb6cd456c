"""What a plan says of a block's KV cache, and how much such a cache holds (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from autoprune.space import KEEP, PREFILL, PROMPT, SublayerPlan

FULL = "kv_full"  # in a plan: the value of the policy's own setting at which the cache keeps everything


@dataclass(frozen=True)
class Window:
    """The first `sink` tokens and the newest: `budget` in all."""

    name: ClassVar[str] = "window"
    gene: ClassVar[str] = "kv_budget"
    budget: int
    sink: int

    def held(self, groups: int, head_dim: int, tokens: int) -> int:
        """Numbers in the cache after `tokens` tokens."""
        return 2 * groups * head_dim * min(tokens, self.budget)


@dataclass(frozen=True)
class Accumulated:
    """The newest `recent` tokens and those that had most attention, older attention counting less: `budget` in all.

    A_t(j) = forgetting * A_{t-1}(j) + p_t(j), p_t being what the queries of a KV group pay to token j at step t, in the
    prompt too; whoever has least goes (A2SF; with forgetting = 1 it is H2O).
    """

    name: ClassVar[str] = "accumulated"
    gene: ClassVar[str] = "kv_budget"
    budget: int
    recent: int
    forgetting: float

    def held(self, groups: int, head_dim: int, tokens: int) -> int:
        """Numbers in the cache after `tokens` tokens; the scores, one a token and group, are not counted."""
        return 2 * groups * head_dim * min(tokens, self.budget)


@dataclass(frozen=True)
class Streaming:
    """The first `full_groups` KV groups keep everything, the others the first `sink` and the newest `recent` tokens."""

    name: ClassVar[str] = "streaming"
    gene: ClassVar[str] = "kv_full_groups"
    full_groups: int
    sink: int
    recent: int

    def held(self, groups: int, head_dim: int, tokens: int) -> int:
        """Numbers in the cache after `tokens` tokens."""
        full = min(self.full_groups, groups)
        return 2 * head_dim * (full * tokens + (groups - full) * min(tokens, self.sink + self.recent))


@dataclass(frozen=True)
class KeyChannels:
    """Keys older than the newest `recent` keep `channels` of their channels, values stay whole.

    Which, each KV group chooses when the prompt is read: those of the largest mean q_i^2 over its last `recent` queries
    times mean k_i^2 over its tokens (ThinK).
    """

    name: ClassVar[str] = "key_channels"
    gene: ClassVar[str] = "kv_channels"
    channels: int
    recent: int

    def held(self, groups: int, head_dim: int, tokens: int) -> int:
        """Numbers in the cache after `tokens` tokens."""
        newest = min(tokens, self.recent)
        return groups * (newest * 2 * head_dim + (tokens - newest) * (self.channels + head_dim))


KVPolicy = Window | Accumulated | Streaming | KeyChannels
POLICIES: tuple[type[KVPolicy], ...] = (Window, Accumulated, Streaming, KeyChannels)
GENES = frozenset(policy.gene for policy in POLICIES)


def policy_of(plan: SublayerPlan) -> KVPolicy | None:
    """The policy of an attention sublayer's cache; None when it keeps everything."""
    found = dict(plan.settings)
    if FULL not in found:
        return None
    if "kv_channels" in found:
        policy: KVPolicy = KeyChannels(int(found["kv_channels"]), int(found["kv_recent"]))
    elif "kv_full_groups" in found:
        policy = Streaming(int(found["kv_full_groups"]), int(found["kv_sink"]), int(found["kv_recent"]))
    elif "kv_forgetting" in found:
        recent, forgetting = int(found["kv_recent"]), float(found["kv_forgetting"])
        policy = Accumulated(int(found["kv_budget"]), recent, forgetting)
    else:
        policy = Window(int(found["kv_budget"]), int(found["kv_sink"]))
    whole = int(found["kv_groups"]) if isinstance(policy, Streaming) else int(found[FULL])
    return None if int(found[policy.gene]) >= whole else policy


def held_values(plan: SublayerPlan, head_dim: int, tokens: int) -> int:
    """Numbers that an attention sublayer's cache holds after `tokens` tokens."""
    groups, policy = int(plan.get("kv_groups")), policy_of(plan)
    return 2 * groups * head_dim * tokens if policy is None else policy.held(groups, head_dim, tokens)


def decodes_otherwise(settings: Iterable[str]) -> bool:
    """Whether plan settings of these names change nothing but what follows a prompt."""
    names = set(settings)
    return caches_less(names) or drops_prompt(names)


def drops_prompt(settings: Iterable[str]) -> bool:
    """Whether plan settings of these names say which prompt tokens a block hands on."""
    return bool({f"{KEEP}{PREFILL}", f"{KEEP}{PROMPT}"} & set(settings))


def caches_less(settings: Iterable[str]) -> bool:
    """Whether plan settings of these names say what a KV cache keeps."""
    return bool(GENES & set(settings))
