"""What the families of encoders share: bidirectional blocks under a padding mask, and a classifier at their end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.errors import UnsupportedModelError
from autoprune.export.modeling import tokens
from autoprune.models import norms
from autoprune.models.base import State, Weights
from autoprune.models.decoder import Decoder
from autoprune.shape import Shape
from autoprune.space import KINDS, Kind, SublayerPlan, token_keep


class Encoder(Decoder, ABC):
    """Runs and slices a stock classifier; what it has in common with decoders (units, weights, slicing) it inherits.

    A family names its `layout` and overrides `embed`, `inputs`, `classify`, `scale` and, where it differs, `check`.
    """

    norm = staticmethod(norms.layer)
    specials = 1  # tokens at the front that stand for the whole

    def __init__(self, model: Any, exact: bool = False) -> None:
        super().__init__(model, exact)
        names = {kind: self._norm_path(kind) for kind in KINDS}
        blocks = list(model.get_submodule(self.layout.blocks))
        self._eps = float(blocks[0].get_submodule(names["attention"]).eps) if blocks else self._eps

    def _norm_path(self, kind: Kind) -> str:
        return next(path for path, short in self.layout.modules(kind).items() if short == ("norm",))

    def check(self, config: Any) -> None:
        """Only what classifies is streamed: one class of each model."""
        if not isinstance(self.model, self.layout.stock):
            raise UnsupportedModelError(
                f"{config.model_type}: {type(self.model).__name__} is not supported, only {self.layout.stock.__name__}"
            )

    @abstractmethod
    def classify(self, hidden: Tensor) -> Tensor:
        """Logits [B, classes] from what leaves the last block, [B, T, d]."""

    @abstractmethod
    def outside_flops(self) -> int:
        """FLOPs outside blocks: the classifier's, and what embeds an image."""

    def inner(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tensor:
        """Attention's head outputs [B, T, heads x head_dim], or the FFN's activations [B, T, width]."""
        entered = self._entered(state, weights)
        if kind == "attention":
            return self._attend(block, entered, state, weights, plan)
        return self._activation(self._apply("up", entered, weights))  # type: ignore[no-any-return]

    def run_sublayer(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> State:
        """Residual plus the sublayer's output, normed where the family norms after; the input state stays as it was."""
        if (keep := token_keep(plan)) is not None:
            return self._reduced(block, state, weights, *keep)
        hidden = self.summed(block, kind, state, weights, plan)
        return replace(state, hidden=self._left(hidden, weights))

    def head(self, state: State) -> Tensor:
        """Logits [B, classes]."""
        return self.classify(state.hidden)

    def attention(self, block: int, state: State, weights: Weights) -> Tensor:
        """How much each token looks at each, [B, heads, T, T]: rows sum to one. What a pass never has in memory."""
        entered = self._entered(state, weights)
        query, key = (self._heads(name, entered, state, weights) for name in ("q", "k"))
        return tokens.attend(query, key, key, self._mask(state), self._scales[block])[1]

    def _normed(self, hidden: Tensor, weights: Weights) -> Tensor:
        return self.norm(hidden, weights["norm"], weights.get("norm_bias"), self._eps)

    def _left(self, summed: Tensor, weights: Weights) -> Tensor:
        """What leaves a sublayer."""
        return self._normed(summed, weights) if self.layout.post_norm else summed

    def _reduced(self, block: int, state: State, weights: Weights, rule: str, percent: int) -> State:
        """An attention that hands on some of the tokens."""
        entered = self._entered(state, weights)
        query, key, value = (self._heads(name, entered, state, weights) for name in ("q", "k", "v"))
        context, attention = tokens.attend(query, key, value, self._mask(state), self._scales[block])
        hidden = self._left(self._apply("o", context, weights) + state.hidden, weights)
        alive = tokens.Alive(hidden, state.valid, state.sizes)
        left, index = tokens.reduce(rule, percent, alive, attention, key, self.specials)
        places = state.positions.expand(len(hidden), -1)
        return replace(
            state,
            hidden=left.hidden,
            valid=left.valid,
            sizes=left.sizes,
            positions=places.gather(1, index),
            kept=(places if state.kept is None else state.kept).gather(1, index),
        )

    def _entered(self, state: State, weights: Weights) -> Tensor:
        """What a sublayer's first projections read."""
        return state.hidden if self.layout.post_norm else self._normed(state.hidden, weights)

    def _mask(self, state: State) -> Tensor | None:
        """What is added to attention scores, [B, 1, 1, T]."""
        return tokens.mask_of(tokens.Alive(state.hidden, state.valid, state.sizes))

    def _attend(
        self, block: int, normed: Tensor, state: State, weights: Weights, plan: SublayerPlan | None
    ) -> Tensor:
        batch, count, _ = normed.shape
        query, key, value = (self._heads(name, normed, state, weights) for name in ("q", "k", "v"))
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask(state), scale=self._scales[block]
        )
        return out.transpose(1, 2).reshape(batch, count, -1)

    def _sizes(self, config: Any, blocks: int) -> Shape:
        """A classifier has no head over words to tie."""
        sizes = super()._sizes(config, blocks)
        count = config.num_labels
        return replace(
            sizes, tied=False, gated=False, task="sentences", classes=count, specials=self.specials
        )

    def _counted(self, shape: Shape) -> Shape:
        """What the parameters say; all blocks are alike."""
        attention, ffn = (self._dense[0][kind] for kind in KINDS)
        inside = f"{self.layout.blocks}."
        return replace(
            shape,
            attention_bias="q_bias" in attention,
            output_bias="o_bias" in attention,
            ffn_bias="up_bias" in ffn,
            norm_params=attention["norm"].numel() + attention["norm_bias"].numel(),
            outside_params=sum(
                p.numel() for n, p in self.model.named_parameters() if not n.startswith(inside)
            ),
            outside_flops=self.outside_flops(),
        )


class SentenceEncoder(Encoder):
    """Reads token ids, negative at padding; `base` names the part of the model below its classifier."""

    base: str

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """What the stock model is called with."""
        ids = ids.to(self.model.device)
        return {"input_ids": self._ids(ids), "attention_mask": (ids >= 0).long()}

    def embed(self, ids: Tensor) -> State:
        """Token ids [B, T], negative at padding, to hidden states."""
        ids = ids.to(self.model.device)
        valid = ids >= 0
        hidden = self.model.get_submodule(self.base).embeddings(input_ids=self._ids(ids))
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return State(hidden, positions, valid=None if bool(valid.all()) else valid)

    def _ids(self, ids: Tensor) -> Tensor:
        padding = self.model.config.pad_token_id or 0
        return ids.masked_fill(ids < 0, padding)


class ImageEncoder(Encoder):
    """Reads pixel values [B, C, H, W]; `base` names the part of the model below its classifier."""

    base: str

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """What the stock model is called with."""
        return {"pixel_values": ids.to(self.model.device)}

    def embed(self, ids: Tensor) -> State:
        """Pixel values to the hidden states of the special tokens and the patches."""
        hidden = self.model.get_submodule(self.base).embeddings(ids.to(self.model.device))
        return State(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])

    def classify(self, hidden: Tensor) -> Tensor:
        """The classifier reads the normed [CLS] token."""
        return self.model.classifier(self._last(hidden)[:, 0])  # type: ignore[no-any-return]

    def outside_flops(self) -> int:
        """Patches are embedded by one product each."""
        s, patches = self.shape, self.model.get_submodule(self.base).embeddings.patch_embeddings
        embedded = int(patches.num_patches * patches.projection.weight.numel())
        return 2 * embedded + 2 * s.hidden * s.classes

    def _sizes(self, config: Any, blocks: int) -> Shape:
        """As of sentences, with the tokens of an image."""
        patches = self.model.get_submodule(self.base).embeddings.patch_embeddings.num_patches
        found = super()._sizes(config, blocks)
        return replace(found, task="images", tokens=patches + self.specials)
