"""KL divergence from the dense model on its top-k tokens, the mass of all others, and a sample of these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoprune.errors import SettingError
from autoprune.evaluation import Batch, Context, mean_scored

FILE = "teacher.safetensors"
FORMAT = 3
HELD_BYTES = 1 << 29  # teachers kept in memory; the rest is read again from disk
SMALLEST = 1e-30
ROUNDING = 1e-8  # a tail below it is what is left of fp32 sums, not a probability
STEEP = 4.0  # see `_beyond`
LARGEST = 30.0  # of a logarithm of a ratio that is exponentiated


class Divergence:
    """`kl`: mean over scored tokens of KL(dense || plan) in nats.

    It is taken on the dense model's top-k tokens and a bin for the rest; what the bin hides is estimated, without bias,
    from a sample of the tokens in it, the same for all plans. With `tail_samples=0` the value is the bin's, a lower
    bound of the full KL. The dense model's side is computed once per micro-batch and kept on disk: k token ids (int16
    or int32) and probabilities (fp16 logarithms), the tail's mass (fp32) and the samples (ids, fp32 logarithms) for
    every token. On load the k probabilities are renormalised to what the tail leaves, so that KL(dense) < 1e-5. Where
    k and the samples together are no less than the vocabulary nothing is binned.

    top_k: tokens of the dense model that are told apart. tail_samples: how many of the others are drawn, by their
    probability.
    """

    metrics = ("kl",)
    needs: Literal["supernet"] = "supernet"
    reads = ("text", "sentences", "images")

    def __init__(self, top_k: int = 512, tail_samples: int = 32) -> None:
        for name, value, least in (("top_k", top_k, 1), ("tail_samples", tail_samples, 0)):
            if value < least:
                raise SettingError(f"evaluator.divergence.{name}={value} must be at least {least}")
        self.top_k, self.tail_samples = top_k, tail_samples
        self._context: Context | None = None
        self._teachers: dict[tuple[str, int, int], _Teacher] = {}

    def bind(self, context: Context) -> None:
        """Remember where the dense logits come from."""
        self._context = context
        self._teachers.clear()

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Mean KL of each sequence, fp64 [B]; logits [B, T, V], or [B, classes] of items."""
        teacher = self._teacher(batch)
        logq = torch.log_softmax(logits, dim=-1)
        top = torch.gather(logq, -1, teacher.ids)  # [B, T, k]
        kl = (teacher.logp - top).mul_(teacher.p).sum(-1)  # [B, T]
        if teacher.tail is not None:
            shift = teacher.tail.log() - (1.0 - top.exp_().sum(-1)).clamp_min(ROUNDING).log()
            kl = kl + teacher.tail * shift
            if teacher.drawn is not None and teacher.drawn_logp is not None:
                ratio = torch.gather(logq, -1, teacher.drawn) - teacher.drawn_logp + shift[..., None]
                kl = kl + teacher.tail * _beyond(ratio, kl)
        return {"kl": mean_scored(kl, batch)}

    def _teacher(self, batch: Batch) -> _Teacher:
        key = (batch.split.value, *batch.windows)
        found = self._teachers.pop(key, None)
        if found is None:
            assert self._context is not None, "bind() comes first"
            sizes = [self.top_k, self.tail_samples]
            inputs = [FORMAT, self._context.digest, *sizes, *key, list(batch.ids.shape)]
            folder = self._context.cache.folder("teacher", inputs, lambda to: self._build(batch, to))
            found = _Teacher.load(folder, batch.ids.device)
            while self._teachers and found.nbytes * (len(self._teachers) + 1) > HELD_BYTES:
                del self._teachers[next(iter(self._teachers))]
        self._teachers[key] = found  # last in line to be dropped
        return found

    def _build(self, batch: Batch, folder: Path) -> None:
        assert self._context is not None
        logp = torch.log_softmax(self._context.dense_logits(batch.ids).float(), dim=-1)
        size = logp.shape[-1]
        k = size if size <= self.top_k + self.tail_samples else self.top_k
        top = logp.topk(k, dim=-1)
        small = torch.int16 if size <= torch.iinfo(torch.int16).max else torch.int32
        stored = {"ids": top.indices.to(small), "logp": top.values.half()}
        if k < size:
            stored["tail"] = (1.0 - top.values.double().exp().sum(-1)).clamp_min(ROUNDING).float()
        if k < size and self.tail_samples:
            first = batch.windows[0]
            pairs = zip(map(torch.atleast_2d, logp), map(torch.atleast_2d, top.indices), strict=True)
            rows = [_drawn(*pair, self.tail_samples, first + i) for i, pair in enumerate(pairs)]
            drawn = torch.stack(rows).reshape(*logp.shape[:-1], -1)
            stored |= {"drawn": drawn.to(small), "drawn_logp": logp.gather(-1, drawn)}
        save_file({name: tensor.cpu() for name, tensor in stored.items()}, folder / FILE)


def _beyond(ratio: Tensor, kl: Tensor) -> Tensor:
    """Estimates KL between dense and plan within the tail, [B, T]; log ratios q / p [B, T, m] of tokens drawn from p.

    The mean of -log r, where r has mean 1, so that any multiple of r - 1 may be added without bias. All of it is best
    where the two are alike (then every term is nearly (log r)^2 / 2), nothing where they are not: the known `kl` of the
    top and the bin, in which the samples have no part, says how alike they are.
    """
    weight = (1.0 + STEEP * kl.clamp_min(0.0)).reciprocal()[..., None]
    return (weight * ratio.clamp_max(LARGEST).expm1() - ratio).mean(-1)


def _drawn(logp: Tensor, top: Tensor, count: int, window: int) -> Tensor:
    """Tokens [T, count] drawn from what the top [T, k] leaves of p, evenly spread over its distribution; by window."""
    p = logp.double().exp().scatter_(-1, top, 0.0)
    below = p.cumsum(-1)
    start = torch.rand(len(p), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(window))
    levels = ((start + torch.arange(count)) / count).to(p.device) * below[:, -1:]
    return torch.searchsorted(below, levels, right=True).clamp_max(p.shape[-1] - 1)


class _Teacher:
    """The dense model's side of a micro-batch: ids, p and logp [B, T, k]; if any, tail [B, T] and drawn [B, T, m]."""

    def __init__(
        self,
        ids: Tensor,
        logp: Tensor,
        tail: Tensor | None,
        drawn: Tensor | None = None,
        drawn_logp: Tensor | None = None,
    ) -> None:
        self.ids = ids
        p = logp.double().exp()
        listed = torch.ones_like(p[..., 0]) if tail is None else 1.0 - tail.double()
        p = p * (listed / p.sum(-1))[..., None]  # rounding to fp16 moved the mass
        self.p = p.float()
        self.logp = p.clamp_min(SMALLEST).log().float()
        self.tail = tail
        self.drawn, self.drawn_logp = drawn, drawn_logp

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        held = (self.ids, self.p, self.logp, self.drawn, self.drawn_logp)
        return sum(int(t.nbytes) for t in held if t is not None)

    @staticmethod
    def load(folder: Path, device: torch.device) -> _Teacher:
        stored = {name: tensor.to(device) for name, tensor in load_file(folder / FILE).items()}
        ids, order = (
            stored["ids"].long().sort(-1)
        )  # of equal weight in memory's order: gathering is 3 times as fast
        logp = stored["logp"].float().gather(-1, order)
        drawn = stored.get("drawn")
        samples = None if drawn is None else drawn.long(), stored.get("drawn_logp")
        return _Teacher(ids, logp, stored.get("tail"), *samples)
