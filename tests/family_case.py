"""A model of a family with its adapter, and ways to run it: what contracts of families are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from autoprune.export.assemble import build, mixed_config
from autoprune.models import adapter_for
from autoprune.space import KINDS, Plan, SublayerPlan
from tests.families import Family
from tests.zeroing import zeroed


@dataclass
class Case:
    """A dense model of a family with its adapter."""

    family: Family
    model: Any
    adapter: Any
    made: dict[tuple[Plan, str], Any] = field(default_factory=dict)

    @staticmethod
    def of(family: Family, model: Any) -> Case:
        """The model with the adapter that a run would use."""
        return Case(family, model, adapter_for(model, family.adapter))

    @property
    def full(self) -> tuple[int, int]:
        """(KV groups, FFN width) of a dense block."""
        return self.adapter.shape.kv_groups, self.adapter.shape.ffn

    def plans(self) -> dict[str, Plan]:
        """Plans of every kind."""
        groups, width = self.full
        few, step = max(1, groups // 2), self.family.step
        return {
            "full": Plan.of([(groups, width)] * 3),
            "narrow": Plan.of([(groups, 9 * step)] * 3),
            "mixed": Plan.of([(groups, 5 * step), (few, width), (few, step)]),
            "gone": Plan.of([(0, width), (groups, 0), (few, 7 * step)]),
            "block_0_gone": Plan.of([(0, 0), (few, 0), (0, 7 * step)]),
            "no_attention": Plan.of([(0, 9 * step)] * 3),
            "nothing": Plan.of([(0, 0)] * 3),
        }

    def kept(self, block: int, plan: SublayerPlan) -> Mapping[str, Tensor]:
        """The last units, out of order; all of them in order, to compare exactly."""
        weights = self.adapter.weights(block, plan.kind)
        for setting, units in self.adapter.all_units(plan.kind).items():
            count, order = int(plan.get(setting, units.count)), torch.arange(units.count)
            weights = units.take(weights, order if count == units.count else order.flip(0)[:count])
        return weights  # type: ignore[no-any-return]

    def install(self, plan: Plan) -> Any:
        """The physically smaller model; not to be changed."""
        if (plan, "") not in self.made:
            self.made[plan, ""] = self.adapter.install(plan, self.kept, torch.float32)
        return self.made[plan, ""]

    def install_mixed(self, plan: Plan) -> Any:
        """As `install`, in the mixed class even where the stock one would do."""
        if type(self.install(plan)) is not type(self.model):
            return self.install(plan)
        if (plan, "mixed") not in self.made:
            config = mixed_config(self.adapter, plan)
            self.made[plan, "mixed"] = build(self.adapter, config, plan, self.kept, torch.float32)
        return self.made[plan, "mixed"]

    def stream(self, ids: Tensor, plan: Plan | None = None, adapter: Any = None) -> Tensor:
        """Logits through the block stream."""
        adapter = adapter or self.adapter
        with torch.inference_mode():
            state = adapter.embed(ids)
            for block in range(adapter.shape.blocks):
                for kind in KINDS:
                    sublayer = None if plan is None else plan.at(block, kind)
                    if sublayer is None or not sublayer.gone:
                        weights = self.kept(block, sublayer) if sublayer else adapter.weights(block, kind)
                        state = adapter.run_sublayer(block, kind, state, weights, sublayer)
            return adapter.head(state)  # type: ignore[no-any-return]

    def zeroed(self, plan: Plan) -> Any:
        """The dense model with the output of lost units set to zero; of lost sublayers all of it."""
        return zeroed(self.family, self.model, self.adapter, plan)


def inputs(model: Any, ids: Tensor) -> dict[str, Any]:
    """What a stock model takes."""
    if ids.is_floating_point():
        return {"pixel_values": ids}
    if "ForSequenceClassification" in type(model).__name__:
        padded = ids.masked_fill(ids < 0, model.config.pad_token_id)
        return {"input_ids": padded, "attention_mask": (ids >= 0).long()}
    return {"input_ids": ids, "use_cache": False}


def logits(model: Any, ids: Tensor) -> Tensor:
    """Full logits without a cache."""
    with torch.inference_mode():
        return model(**inputs(model, ids)).logits  # type: ignore[no-any-return]


def held_bytes(model: Any, ids: Tensor) -> int:
    """Bytes of the cache after a prefill."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    held = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in held)


def cached(model: Any, ids: Tensor, cache: Any, start: int = 9) -> Tensor:
    """Prefill, then one token at a time."""
    with torch.inference_mode():
        output = model(input_ids=ids[:, :start], past_key_values=cache, use_cache=True)
        found = [output.logits]
        for i in range(start, ids.shape[1]):
            step = ids[:, i : i + 1]
            output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
    return torch.cat(found, 1)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, relative to the largest value where that is above one."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))
