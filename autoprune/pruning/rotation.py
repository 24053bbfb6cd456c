"""A narrower residual stream: rotated to its principal directions, of which the last are cut off (SliceGPT, card C9).

RMSNorm commutes with rotations once its scale is in the weights behind it. One rotation Q [d, d] for all blocks: what
reads the stream becomes W diag(g) Q, what writes into it Q^T W, and no block needs a matrix on its residual. So the
result is a model of the same class, of a smaller hidden size, whose embedding and head are no longer tied.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from autoprune.data import Windows, as_tensor
from autoprune.export.assemble import filled
from autoprune.models.decoder import Decoder
from autoprune.space import KINDS, Kind

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # pre-norm, RMSNorm with a plain scale, rotary positions
WRITERS = {"attention": "o", "ffn": "down"}

Step = Callable[[int, int], None]


@torch.inference_mode()
def directions(adapter: Decoder, windows: Windows, sequences: int, step: Step | None = None) -> Tensor:
    """Eigenvectors [d, d] (fp64, columns, largest eigenvalue first) of sum x x^T over all that norms read.

    x is a token's hidden state over its root mean square, at every norm of the model, the final one included.
    """
    width, device = adapter.shape.hidden, adapter.model.device
    second = torch.zeros(width, width, dtype=torch.float64, device=device)
    for start in range(0, len(windows), sequences):
        state = adapter.embed(as_tensor(windows[start : start + sequences]))
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                second += _gram(state.hidden)
                state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
        second += _gram(state.hidden)
        if step is not None:
            step(min(start + sequences, len(windows)), len(windows))
    found: Tensor = torch.linalg.eigh(second).eigenvectors.flip(1)
    return found


def _gram(hidden: Tensor) -> Tensor:
    flat = hidden.flatten(0, -2)
    unit = flat * flat.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
    return (unit.T @ unit).double()


def rotated(adapter: Decoder, turn: Tensor, width: int) -> Any:
    """The stock model whose residual stream has `width` dimensions: the first of `turn` [d, d], fp64, columns."""
    model, config = adapter.model, copy.deepcopy(adapter.model.config)
    config.hidden_size, config.head_dim, config.tie_word_embeddings = width, adapter.shape.head_dim, False
    with torch.device("meta"):
        small = adapter.layout.stock(config)
    narrow = dict(_tensors(adapter, turn[:, :width]))
    found = filled(small, {name: t.float().contiguous() for name, t in narrow.items()}, model)
    found.checkpoint_dtype = getattr(model, "checkpoint_dtype", model.dtype)
    return found.requires_grad_(False)


def _tensors(adapter: Decoder, turn: Tensor) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, fp64."""
    model, last = adapter.model, adapter.layout.final_norm
    places = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    scale = model.get_submodule(last).weight.double()
    yield f"{places[embedding]}.weight", embedding.weight.double() @ turn
    yield f"{places[head]}.weight", (head.weight.double() * scale) @ turn
    yield f"{last}.weight", _level(turn)
    for block in range(adapter.shape.blocks):
        for kind in KINDS:
            yield from adapter.layout.write(block, kind, _sublayer(adapter, block, kind, turn))


def _sublayer(adapter: Decoder, block: int, kind: Kind, turn: Tensor) -> dict[str, Tensor]:
    """A sublayer's tensors by short name."""
    found = {name: tensor.double() for name, tensor in adapter.weights(block, kind).items()}
    scale, writer = found["norm"], WRITERS[kind]
    for name in ("q", "k", "v", "gate", "up"):
        if name in found:
            found[name] = (found[name] * scale) @ turn
    found[writer] = turn.T @ found[writer]
    if f"{writer}_bias" in found:
        found[f"{writer}_bias"] = turn.T @ found[f"{writer}_bias"]
    return {**found, "norm": _level(turn)}


def _level(turn: Tensor) -> Tensor:
    """The scale of a norm over fewer dimensions: their mean square is larger, as the lost ones were the small ones."""
    whole, width = turn.shape
    return turn.new_full((width,), math.sqrt(whole / width))
