"""Merged experts: made of a ladder's experts when a plan asks for them, and held while there is room."""

from __future__ import annotations

import json
from collections import OrderedDict

import torch
from torch import Tensor

from autoprune.models.base import Weights

ROOM = 256 << 20  # bytes of merged experts that are held


def merged(weights: Weights, text: str) -> dict[str, Tensor]:
    """Weights of the merged experts; `text` is JSON of [2, kept, experts], `weights` are those of all experts.

    Expert i has gate, up and down sum_j M_ij W_j, and the router row sum_j R_ij r_j.
    """
    like = weights["gate"]
    of_experts, of_router = torch.tensor(json.loads(text), dtype=like.dtype, device=like.device)
    found = {name: torch.einsum("kn,nab->kab", of_experts, weights[name]) for name in ("gate", "up")}
    down = torch.einsum("kn,nab->kab", of_experts, weights["down"].mT).contiguous()
    return {**weights, **found, "down": down.mT, "router": of_router @ weights["router"]}


class Held:
    """The merged experts that were asked for last, within `ROOM`; the oldest go first."""

    def __init__(self, room: int = ROOM) -> None:
        self._room, self._bytes = room, 0
        self._held: OrderedDict[tuple[int, str, int], Weights] = OrderedDict()

    def get(self, block: int, text: str, width: int, weights: Weights) -> Weights:
        """Of a block's experts, `width` neurons wide."""
        key = (block, text, width)
        found = self._held.pop(key, None)
        if found is None:
            found = merged(weights, text)
            self._bytes += _bytes(found)
        self._held[key] = found
        while self._bytes > self._room and len(self._held) > 1:
            self._bytes -= _bytes(self._held.popitem(last=False)[1])
        return found

    def only(self, block: int) -> None:
        """Let go of other blocks' experts."""
        for key in [k for k in self._held if k[0] != block]:
            self._bytes -= _bytes(self._held.pop(key))


def _bytes(weights: Weights) -> int:
    return sum(weights[name].nbytes for name in ("gate", "up", "down", "router"))
