"""Terms of models whose blocks hand on fewer tokens, classifiers and decoders: known of whole plans only."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from autoprune.hardware.parts import Flow, Part
from autoprune.shape import Shape, kept_count
from autoprune.space import KEEP, PREFILL, PROMPT, Kind, Plan, SublayerPlan, token_keep

CHOICES = 2  # of tokens, by steps of decoding: docs-llama, 401 blocks of random plans, see docs/log.md


@dataclass(frozen=True)
class Tokens:
    """What a sublayer costs however few tokens it reads, and an attention for pairs of them and for ranking them."""

    shape: Shape
    kind: Kind

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the attention five, of the FFN one."""
        more = ("scores", "ranking", "ranking tokens", "ranking pairs") if self.kind == "attention" else ()
        return tuple(Part(self.kind, f"tokens {name}") for name in ("fixed", *more))

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """By the share of the tokens that enters; nothing for ranking where all are handed on."""
        if self.kind == "ffn":
            return [1.0]
        groups = int(plan.get("kv_groups")) / self.shape.kv_groups
        ranked = float(token_keep(plan) is not None)
        share = flow.came
        return [1.0, groups * share**2, ranked, ranked * share, ranked * groups * share**2]


@dataclass(frozen=True)
class PromptTokens:
    """What changes in a decoder some block of which hands on fewer prompt tokens; nothing in others.

    Prefill reads fewer; decoding ranks them anew, gathers those in sight and computes those that come back.
    """

    shape: Shape
    kind: Kind
    prompt: int  # tokens
    steps: int  # of decoding

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the attention eight, of the FFN three."""
        own = (
            "slot",
            "fewer",
            "fewer groups",
            "pairs",
            "returning",
            "ranking",
            "ranking tokens",
            "ranking left",
        )
        names = own if self.kind == "attention" else ("fewer", "returning", "width")
        return tuple(Part(self.kind, f"prompt {name}") for name in names)

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """By the share of the prompt that is in sight; sizes as shares of the full ones.

        What is read costs in proportion already: of pairs of tokens there are fewer than that.
        """
        if not flow.dropping:
            return [0.0] * len(self.parts)
        if metric == "decode":
            return self.decoding(plan, flow)
        share, fewer, ranked = flow.came, 1 - flow.came, float(token_keep(plan) is not None)
        if self.kind == "ffn":
            return [fewer, share * fewer, fewer * int(plan.get("width")) / self.shape.ffn]
        groups = fewer * self._groups(plan)
        return [
            1.0,
            fewer,
            groups,
            -share * groups,
            share * fewer,
            ranked,
            ranked * share,
            ranked * flow.left,
        ]

    def decoding(self, plan: SublayerPlan, flow: Flow) -> list[float]:
        """The same of one later token, mean over the steps."""
        share, ranked = flow.came, float(token_keep(plan) is not None)
        back = returning(share, self.prompt, self.steps)
        some = 1 - math.exp(-back)
        if self.kind == "ffn":
            return [some, back, back * int(plan.get("width")) / self.shape.ffn]
        groups, sight = self._groups(plan), share * (share < 1)
        return [1.0, some, sight * groups, back * groups, back, ranked, ranked * share, ranked * flow.left]

    def _groups(self, plan: SublayerPlan) -> float:
        return int(plan.get("kv_groups")) / self.shape.kv_groups


@dataclass(frozen=True)
class KeptPromptTokens(PromptTokens):
    """The same where what is dropped never returns: prefill as there, decoding reads smaller caches."""

    def decoding(self, plan: SublayerPlan, flow: Flow) -> list[float]:
        """Of an attention its slot, and the pairs that a full cache would have made."""
        saved = -(1 - flow.came) * self._groups(plan) if self.kind == "attention" else 0.0
        own = {"prompt slot": 1.0, "prompt pairs": saved}
        return [own.get(part.name, 0.0) for part in self.parts]


def returning(share: float, prompt: int, steps: int) -> float:
    """Prompt tokens that come back at a step of decoding, on average, where a block has this share of them in sight.

    Choices of later steps are much alike: as many tokens come back as if only two of the steps chose anew and at
    random. The prompt's last token never goes.
    """
    away = 1 - max(share - 1 / prompt, 0.0) if share < 1 else 0.0
    return prompt * away * (1 - away**CHOICES) / steps


def flows(plan: Plan, tokens: int, specials: int) -> list[Flow]:
    """What share of so many tokens enters and leaves every sublayer."""
    found, now = list[Flow](), tokens
    dropping = any((token_keep(s) or ("",))[0] in (PREFILL, PROMPT) for s in plan.sublayers)
    for sublayer in plan.sublayers:
        keep = token_keep(sublayer)
        left = now if keep is None else kept_count(now, keep[1], specials)
        found.append(Flow(now / tokens, left / tokens, dropping))
        now = left
    return found


def drops_tokens(settings: Collection[str]) -> bool:
    """Whether plans with such settings hand on fewer tokens: what a sublayer costs is known of whole plans only."""
    return any(name.startswith(KEEP) for name in settings)
