"""A model of a family with its adapter, and ways to run it: what contracts of families are made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from autoprune.export.assemble import build, mixed_config
from autoprune.models import adapter_for
from autoprune.space import KINDS, Kind, Plan, SublayerPlan
from tests.families import Family


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
        few = max(1, groups // 2)
        return {
            "full": Plan.of([(groups, width)] * 3),
            "narrow": Plan.of([(groups, 9)] * 3),
            "mixed": Plan.of([(groups, 5), (few, width), (few, 1)]),
            "gone": Plan.of([(0, width), (groups, 0), (few, 7)]),
            "block_0_gone": Plan.of([(0, 0), (few, 0), (0, 7)]),
            "no_attention": Plan.of([(0, 9)] * 3),
            "nothing": Plan.of([(0, 0)] * 3),
        }

    def kept(self, block: int, plan: SublayerPlan) -> Mapping[str, Tensor]:
        """The last units, out of order; all of them in order, to compare exactly."""
        units, weights = self.adapter.units(plan.kind), self.adapter.weights(block, plan.kind)
        count = int(plan.get(self.adapter.unit_setting(plan.kind)))
        order = (
            torch.arange(units.count) if count == units.count else torch.arange(units.count).flip(0)[:count]
        )
        return units.take(weights, order)  # type: ignore[no-any-return]

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
                        state = adapter.run_sublayer(block, kind, state, weights)
            return adapter.head(state)  # type: ignore[no-any-return]

    def zeroed(self, plan: Plan) -> Any:
        """The dense model with the output of lost units set to zero; of lost sublayers all of it."""
        twin = copy.deepcopy(self.model)
        for block, layer in enumerate(twin.get_submodule(self.family.blocks)):
            for kind in KINDS:
                out, count = layer.get_submodule(self.family.out[kind]), self.adapter.units(kind).count
                kept = int(plan.at(block, kind).get(self.adapter.unit_setting(kind)))
                columns = out.weight if type(out).__name__ == "Conv1D" else out.weight.T
                with torch.no_grad():
                    columns[: len(columns) // count * (count - kept)] = 0
                    if not kept and out.bias is not None:
                        out.bias.zero_()
                if not kept and self.adapter.layout.post_norm:
                    self._unnormed(layer, kind)
        return twin

    def _unnormed(self, layer: Any, kind: Kind) -> None:
        """A norm after the residual goes with its sublayer."""
        modules = self.adapter.layout.modules(kind)
        owner, _, name = next(p for p, names in modules.items() if names == ("norm",)).rpartition(".")
        setattr(layer.get_submodule(owner), name, torch.nn.Identity())


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
