"""Exact match: whether a built model, decoding greedily, writes the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Context, Failure, Scores
from autoprune.forward import BuiltModel, Runner, batches
from autoprune.objective import Array, Split
from autoprune.space import Plan
from evaluators.decoding import NotFiniteError, greedy
from evaluators.prompts import Prompt, read_prompts


class ExactMatch:
    """`exact_match_acc`: share of prompts to which a built model writes the answer and nothing else, greedily.

    Decoded with the KV cache, prompts of equal length together, until the vocabulary's end of text or `tokens`.
    Spaces around an answer do not count.

    file: JSON lines with `prompt` and `answer`; tokens: the most that are decoded; first_line: whether what is written
    ends at a line's end; limit: prompts from the first on (null: all); rows: prompts decoded at once.
    """

    metrics: tuple[str, ...] = ("exact_match_acc", "exact_match_acc_stderr")
    needs: Literal["model"] = "model"
    split: Literal[Split.TEST] = Split.TEST

    def __init__(
        self,
        file: str | None = None,
        tokens: int = 32,
        first_line: bool = True,
        limit: int | None = None,
        rows: int = 8,
    ) -> None:
        if file is None:
            raise SettingError(
                'evaluator.exact_match.file=null: name a file of {"prompt": "…", "answer": "…"} lines'
            )
        for name, value in (("tokens", tokens), ("limit", limit), ("rows", rows)):
            if value is not None and value < 1:
                raise SettingError(f"evaluator.exact_match.{name}={value} must be at least 1")
        self._file, self._count, self._first_line, self._limit, self._rows = (
            file,
            tokens,
            first_line,
            limit,
            rows,
        )
        self._prompts: list[Prompt] = []
        self._ids: list[list[int]] = []
        self._tokenizer: Any = None

    def bind(self, context: Context) -> None:
        """Read and tokenise the prompts; DataError for what is missing, empty or too long."""
        self._tokenizer = context.tokenizer
        self._prompts = read_prompts(Path(self._file).expanduser(), "evaluator.exact_match.file")[
            : self._limit
        ]
        self._ids = [list(self._tokenizer(p.prompt)["input_ids"]) for p in self._prompts]
        for prompt, ids in zip(self._prompts, self._ids, strict=True):
            if len(ids) + self._count > context.longest:
                raise DataError(
                    f"{self._file} line {prompt.line}: {len(ids)} tokens and the {self._count} of "
                    f"evaluator.exact_match.tokens are more than the {context.longest} that the model can read"
                )

    def price(self) -> int:
        """Tokens put through a model for one plan, at most."""
        return sum(len(ids) + self._count for ids in self._ids)

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        """One built plan; an item is 1 where the answer was written."""
        assert isinstance(runner, BuiltModel) and self._tokenizer is not None, "bind() comes first"
        try:
            texts = self.write(runner.model)
        except NotFiniteError as error:
            return [Failure(str(error))]
        hits = np.array([float(t == p.answer) for t, p in zip(texts, self._prompts, strict=True)])
        return [accuracy("exact_match_acc", hits)]

    def write(self, model: Any) -> list[str]:
        """What a model writes to every prompt, cut where it ends."""
        found = [""] * len(self._ids)
        lengths: dict[int, list[int]] = {}
        for index, ids in enumerate(self._ids):
            lengths.setdefault(len(ids), []).append(index)
        for group in lengths.values():
            for at in batches(len(group), self._rows):
                prompts = torch.tensor([self._ids[i] for i in group[at]])
                written = greedy(model, prompts, self._count, self._ends())
                for index, row in zip(group[at], written, strict=True):
                    found[index] = self._text(row.tolist())
        return found

    def _ends(self) -> set[int]:
        end = self._tokenizer.eos_token_id
        return set() if end is None else {int(end)}

    def _text(self, tokens: list[int]) -> str:
        ends = self._ends()
        stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        text = str(self._tokenizer.decode(tokens[:stop])).lstrip(" ")
        return (text.partition("\n")[0] if self._first_line else text).strip()


def accuracy(name: str, hits: Array) -> Scores:
    """Share of hits with its standard error; items under the same name, for paired comparison."""
    count, mean = len(hits), float(hits.mean())
    error = float(hits.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return Scores({name: mean, f"{name}_stderr": error}, {name: hits})
