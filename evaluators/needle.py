"""Needle in a haystack: whether a built model finds again what stood far back in its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Context, Failure, Scores
from autoprune.forward import BuiltModel, Runner, batches
from autoprune.objective import Array, Split
from autoprune.space import Plan
from evaluators.decoding import NotFiniteError, greedy
from evaluators.exact_match import accuracy

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """The items of one length and depth: prompts [N, T], answers [N, answer], and prompts without the needle."""

    name: str  # needle_256_50: at half of 256 tokens
    prompts: Tensor
    answers: Tensor
    without: Tensor


class Needle:
    """`needle_acc`: share of needles that a built model, decoding greedily, finds again in running text.

    A needle is `cue + answer` tokens drawn one by one from the test text, which no model of language can guess; it
    stands in test text at a depth (0: at the start), the prompt ends with the cue again, and a hit is the whole answer.
    `needle_guess_acc` is the same with another needle in its place. Decoded with the KV cache. Also a share for each
    length and depth.

    lengths: tokens of the prompts; depths: where the needle stands, 0 to 1; items: needles of each length and depth;
    cue: tokens that ask; answer: tokens to be found; seed: of places and needles; rows: prompts decoded at once.
    """

    metrics: tuple[str, ...] = ("needle_acc", "needle_acc_stderr", "needle_guess_acc")
    needs: Literal["model"] = "model"
    split: Literal[Split.TEST] = Split.TEST

    def __init__(
        self,
        lengths: Sequence[int] = (128, 256),
        depths: Sequence[float] = (0.0, 0.5, 1.0),
        items: int = 8,
        cue: int = 4,
        answer: int = 2,
        seed: int = 0,
        rows: int = 8,
    ) -> None:
        for name, value in (("items", items), ("cue", cue), ("answer", answer), ("rows", rows)):
            if value < 1:
                raise SettingError(f"evaluator.needle.{name}={value} must be at least 1")
        least = 2 * cue + answer + 1
        if not lengths or min(lengths) < least:
            raise SettingError(
                f"evaluator.needle.lengths={list(lengths)} must each be at least {least}, the needle and its cue"
            )
        if not depths or min(depths) < 0 or max(depths) > 1:
            raise SettingError(f"evaluator.needle.depths={list(depths)} must each be from 0 to 1")
        self._lengths, self._depths, self._items = tuple(lengths), tuple(depths), items
        self._cue, self._answer, self._seed, self._rows = cue, answer, seed, rows
        self._cells: list[Cell] = []

    def bind(self, context: Context) -> None:
        """Place the needles; SettingError or DataError when model or text are too short."""
        assert context.corpus is not None, "a corpus is needed"
        longest = max(self._lengths)
        if longest + self._answer > context.longest:
            raise SettingError(
                f"evaluator.needle.lengths={list(self._lengths)}: {longest} tokens and {self._answer} of the "
                f"answer are more than the {context.longest} that the model can read"
            )
        text = context.corpus.text(Split.TEST).astype(np.int64)
        if len(text) < longest:
            raise DataError(
                f"evaluator.needle.lengths={list(self._lengths)}: split test has {len(text)} tokens; give more text or "
                "smaller lengths"
            )
        rng = np.random.default_rng(self._seed)
        self._cells = [self._cell(text, n, depth, rng) for n in self._lengths for depth in self._depths]
        self.metrics = (*Needle.metrics, *(cell.name for cell in self._cells))

    def price(self) -> int:
        """Tokens put through a model for one plan."""
        return sum(2 * (c.prompts.numel() + c.answers.numel()) for c in self._cells)

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        """One built plan; an item is 1 where the needle was found."""
        assert isinstance(runner, BuiltModel) and self._cells, "bind() comes first"
        try:
            hits = [self._hits(runner, c.prompts, c.answers) for c in self._cells]
            guesses = [self._hits(runner, c.without, c.answers) for c in self._cells]
        except NotFiniteError as error:
            return [Failure(str(error))]
        whole = accuracy("needle_acc", np.concatenate(hits))
        shares = {cell.name: float(found.mean()) for cell, found in zip(self._cells, hits, strict=True)}
        guessed = {"needle_guess_acc": float(np.concatenate(guesses).mean())}
        return [Scores({**whole.metrics, **guessed, **shares}, whole.per_window)]

    def _hits(self, runner: BuiltModel, prompts: Tensor, answers: Tensor) -> Array:
        written = [
            greedy(runner.model, prompts[at], self._answer) for at in batches(len(prompts), self._rows)
        ]
        return (torch.cat(written) == answers).all(-1).double().numpy()

    def _cell(self, text: Tokens, length: int, depth: float, rng: np.random.Generator) -> Cell:
        drawn = [self._item(text, length, depth, rng) for _ in range(self._items)]
        prompts, answers, without = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        return Cell(f"needle_{length}_{round(100 * depth)}", prompts, answers, without)

    def _item(
        self, text: Tokens, length: int, depth: float, rng: np.random.Generator
    ) -> tuple[Tokens, Tokens, Tokens]:
        """A prompt, its answer, and the prompt with another needle."""
        needle, other = (rng.choice(text, self._cue + self._answer) for _ in range(2))
        cue, answer = needle[: self._cue], needle[self._cue :]
        hay = length - len(needle) - len(cue)
        start, place = int(rng.integers(len(text) - hay + 1)), round(depth * hay)
        before, after = text[start : start + place], text[start + place : start + hay]
        prompts = [np.concatenate([before, n, after, cue]) for n in (needle, other)]
        return prompts[0], answer, prompts[1]
