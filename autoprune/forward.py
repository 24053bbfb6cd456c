"""Sequences with a mask of what is scored, and what can run them: a supernet, or a model that is built already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from autoprune.space import Plan

Visit = Callable[[int, Tensor], None]
PAD = 0  # any token: padding stands at the right, where a causal model looks away


class Runner(Protocol):
    """Runs plans on token ids; `Supernet` is one."""

    def run(self, plans: Sequence[Plan], ids: Tensor, visit: Visit) -> None:
        """Call `visit(index, logits [B, T, V])` once for every plan; ids [B, T]."""


@dataclass(frozen=True)
class BuiltModel:
    """A transformers model in memory as a runner: it is its one plan, whatever that is called."""

    model: Any

    @torch.inference_mode()
    def run(self, plans: Sequence[Plan], ids: Tensor, visit: Visit) -> None:
        """Logits in fp32 on the CPU, without a cache."""
        assert len(plans) == 1, "a built model is one plan"
        visit(0, logits_of(self.model, ids, None))


def logits_of(model: Any, ids: Tensor, prompt_len: int | None) -> Tensor:
    """Logits [B, T, V] of a built model, in fp32 on the CPU; ids [B, T].

    With `prompt_len` the tokens after so many are read on top of the model's own cache, as in decoding.
    """
    ids = ids.to(model.device)
    if prompt_len is None or prompt_len >= ids.shape[1]:
        return model(input_ids=ids, use_cache=False).logits.float().cpu()  # type: ignore[no-any-return]
    prompt = model(input_ids=ids[:, :prompt_len], use_cache=True)
    rest = model(input_ids=ids[:, prompt_len:], past_key_values=prompt.past_key_values, use_cache=True)
    return torch.cat((prompt.logits, rest.logits), dim=1).float().cpu()


@dataclass(frozen=True)
class Rows:
    """Padded sequences: token ids [B, T], and which of them are scored, bool [B, T]; the first never is."""

    ids: Tensor
    scored: Tensor

    @property
    def inputs(self) -> Tensor:
        """What a model reads, [B, T - 1]: the last token is only asked for."""
        return self.ids[:, :-1]

    @staticmethod
    def of(tokens: Sequence[Sequence[int]], counts: Sequence[int]) -> Rows:
        """The last `counts[i]` tokens of each sequence are scored."""
        length = max(map(len, tokens))
        ids = torch.full((len(tokens), length), PAD, dtype=torch.long)
        scored = torch.zeros((len(tokens), length), dtype=torch.bool)
        for i, (row, count) in enumerate(zip(tokens, counts, strict=True)):
            assert 0 < count < len(row), "a token is scored after at least one other"
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            scored[i, len(row) - count : len(row)] = True
        return Rows(ids, scored)


def log_likelihood(logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Sum of the scored tokens' log-probabilities, fp64 [B], and whether all of them were the likeliest, bool [B].

    Logits [B, T - 1, V] are those of `rows.inputs`.
    """
    at, ids = rows.scored[:, 1:], rows.ids[:, 1:]
    picked = logits[at.to(logits.device)]  # [N, V], row by row
    targets = ids[at].to(logits.device)
    chosen = torch.gather(picked, -1, targets[:, None]).squeeze(-1)
    found = chosen - torch.logsumexp(picked, dim=-1)
    owner = torch.arange(len(at))[:, None].expand_as(at)[at]
    total = torch.zeros(len(at), dtype=torch.float64).index_add_(0, owner, found.double().cpu())
    missed = torch.zeros(len(at)).index_add_(0, owner, (chosen < picked.amax(-1)).float().cpu())
    return total, missed == 0


def first_bad(runner: Runner, plan: Plan, ids: Tensor) -> str:
    """`, from block 3 ffn on` where the runner can tell."""
    tell = getattr(runner, "first_bad_sublayer", None)
    return "" if tell is None else f", from {tell(plan, ids)} on"


def batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
