"""Streams calibration windows through the model, block by block, and takes moments of what passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from autoprune.data import Windows, as_tensor
from autoprune.models.base import Adapter, State, Weights
from autoprune.pruning.ladders import OUTPUT
from autoprune.pruning.moments import Moments
from autoprune.space import Kind, SublayerPlan

Progress = Callable[[int, int], None]
SHORTEST = 1e-6  # length of hidden states that weights are one over


class Stream:
    """Calibration windows on their way through the model, in chunks of `sequences` windows.

    Two streams run side by side: the dense model's, and the reference's, whose sublayers may be compressed. As long as
    nothing was compressed they are one.
    """

    def __init__(self, adapter: Adapter, windows: Windows, sequences: int, relative: bool = False) -> None:
        """`relative`: each token counts by one over the squared length of what its dense hidden states become."""
        self._adapter, self._relative = adapter, relative
        self._ahead: list[State] = []  # the dense stream after the sublayer at hand, where moments need it
        starts = range(0, len(windows), sequences)
        ids = [as_tensor(windows[s : s + sequences]) for s in starts]
        self._dense: list[State] = [adapter.embed(chunk) for chunk in ids]
        self._reference = self._dense

    def moments(self, block: int, kind: Kind, follow: bool = False) -> Moments:
        """Moments of the reference's inputs of a sublayer's output projection.

        The projection should give what the dense weights give on these inputs or, with `follow`, what brings the
        hidden states back to the dense model's.
        """
        weights = self._adapter.weights(block, kind)
        output = weights[OUTPUT[kind]]
        found = Moments.zeros(output.shape[1], output.shape[0], output.device)
        sums: Sequence[Tensor | None] = [None] * len(self._dense)
        if follow or self._relative:
            sums = self._sums(block, kind, weights)
        for whole, state in zip(sums, self._reference, strict=True):
            inner = self._adapter.inner(block, kind, state, weights)
            missing = self._missing(kind, whole, state, weights) if follow and whole is not None else None
            if self._relative and whole is not None:
                worth = whole.norm(dim=-1, keepdim=True).clamp_min(SHORTEST).reciprocal()
                inner, missing = inner * worth, None if missing is None else missing * worth
            if state.valid is not None:  # padding says nothing about the text
                inner = inner[state.valid]
                missing = None if missing is None else missing[state.valid]
            found.add(inner, missing)
        cross = found.cross if follow else found.second @ output.double().t()
        return Moments(found.second, cross, found.total, found.count)

    def _sums(self, block: int, kind: Kind, weights: Weights) -> list[Tensor]:
        """The dense model's residual plus output, in chunks; where no norm follows they are what `advance` needs."""
        if getattr(getattr(self._adapter, "layout", None), "post_norm", False):
            return [self._adapter.summed(block, kind, state, weights) for state in self._dense]
        self._ahead = [self._adapter.run_sublayer(block, kind, state, weights) for state in self._dense]
        return [state.hidden for state in self._ahead]

    def _missing(self, kind: Kind, whole: Tensor, state: State, weights: Weights) -> Tensor:
        wanted = whole - state.hidden
        bias = weights.get(f"{OUTPUT[kind]}_bias")
        return wanted if bias is None else wanted - bias

    @property
    def reference(self) -> list[State]:
        """What enters the next sublayer of the reference, in chunks."""
        return self._reference

    def advance(
        self,
        block: int,
        kind: Kind,
        weights: Weights | None,
        dense: Weights,
        plan: SublayerPlan | None = None,
    ) -> None:
        """Move on by one sublayer; the reference runs `weights` by `plan`, None where the sublayer is gone."""
        moved = self._ahead or [self._adapter.run_sublayer(block, kind, s, dense) for s in self._dense]
        self._ahead = []
        if self._reference is self._dense and weights is dense:
            self._reference = moved
        elif weights is not None:
            run = self._adapter.run_sublayer
            self._reference = [run(block, kind, s, weights, plan) for s in self._reference]
        self._dense = moved
