"""KL divergence from the dense model on its top-k tokens plus the mass of all others."""

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
FORMAT = 2
HELD_BYTES = 1 << 29  # teachers kept in memory; the rest is read again from disk
SMALLEST = 1e-30
ROUNDING = 1e-8  # a tail below it is what is left of fp32 sums, not a probability


class Divergence:
    """`kl`: mean over scored tokens of KL(dense || plan) in nats, over the dense model's top-k tokens and one tail bin.

    The tail bin holds all other tokens, so the value is a lower bound of the full KL that is tight for k >= 512. The
    dense model's side is computed once per micro-batch and kept on disk: k token ids (int16 or int32), k
    probabilities (fp16 logarithms) and the tail's mass (fp32) for every token. On load the probabilities are
    renormalised to what the tail leaves, so that KL(dense) < 1e-5. Without a tail (k >= vocabulary) there is no bin.

    top_k: tokens of the dense model that are told apart.
    """

    metrics = ("kl",)
    needs: Literal["supernet"] = "supernet"
    reads = ("text", "sentences", "images")

    def __init__(self, top_k: int = 512) -> None:
        if top_k < 1:
            raise SettingError(f"evaluator.divergence.top_k={top_k} must be at least 1")
        self.top_k = top_k
        self._context: Context | None = None
        self._teachers: dict[tuple[str, int, int], _Teacher] = {}

    def bind(self, context: Context) -> None:
        """Remember where the dense logits come from."""
        self._context = context
        self._teachers.clear()

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Mean KL of each sequence, fp64 [B]; logits [B, T, V], or [B, classes] of items."""
        teacher = self._teacher(batch)
        logp = torch.gather(torch.log_softmax(logits, dim=-1), -1, teacher.ids)  # [B, T, k]
        kl = (teacher.logp - logp).mul_(teacher.p).sum(-1)  # [B, T]
        if teacher.tail is not None:
            rest = (1.0 - logp.exp_().sum(-1)).clamp_min(ROUNDING)
            kl = kl + teacher.tail * (teacher.tail.log() - rest.log())
        return {"kl": mean_scored(kl, batch)}

    def _teacher(self, batch: Batch) -> _Teacher:
        key = (batch.split.value, *batch.windows)
        found = self._teachers.pop(key, None)
        if found is None:
            assert self._context is not None, "bind() comes first"
            inputs = [FORMAT, self._context.digest, self.top_k, *key, list(batch.ids.shape)]
            found = _Teacher.load(
                self._context.cache.folder("teacher", inputs, lambda to: self._build(batch, to))
            )
            while self._teachers and found.nbytes * (len(self._teachers) + 1) > HELD_BYTES:
                del self._teachers[next(iter(self._teachers))]
        self._teachers[key] = found  # last in line to be dropped
        return found

    def _build(self, batch: Batch, folder: Path) -> None:
        assert self._context is not None
        logp = torch.log_softmax(self._context.dense_logits(batch.ids).float(), dim=-1)
        k = min(self.top_k, logp.shape[-1])
        top = logp.topk(k, dim=-1)
        small = torch.int16 if logp.shape[-1] <= torch.iinfo(torch.int16).max else torch.int32
        stored = {"ids": top.indices.to(small), "logp": top.values.half()}
        if k < logp.shape[-1]:
            stored["tail"] = (1.0 - top.values.double().exp().sum(-1)).clamp_min(ROUNDING).float()
        save_file(stored, folder / FILE)


class _Teacher:
    """The dense model's side of one micro-batch, ready for use: ids, p and logp [B, T, k]; tail [B, T] if any."""

    def __init__(self, ids: Tensor, logp: Tensor, tail: Tensor | None) -> None:
        self.ids = ids
        p = logp.double().exp()
        listed = torch.ones_like(p[..., 0]) if tail is None else 1.0 - tail.double()
        p = p * (listed / p.sum(-1))[..., None]  # rounding to fp16 moved the mass
        self.p = p.float()
        self.logp = p.clamp_min(SMALLEST).log().float()
        self.tail = tail

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return int(self.ids.nbytes + self.p.nbytes + self.logp.nbytes)

    @staticmethod
    def load(folder: Path) -> _Teacher:
        stored = load_file(folder / FILE)
        ids, order = (
            stored["ids"].long().sort(-1)
        )  # of equal weight in memory's order: gathering is 3 times as fast
        logp = stored["logp"].float().gather(-1, order)
        return _Teacher(ids, logp, stored.get("tail"))
