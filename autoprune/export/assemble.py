"""From a plan and the kept weights to the physically smaller model."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from autoprune.errors import ExportError
from autoprune.export.packed import masks
from autoprune.kv_policy import KVPolicy, policy_of
from autoprune.models.decoder import Decoder
from autoprune.shape import EXPERT_MULTIPLE, group_heads
from autoprune.space import KEEP, KINDS, Kind, Plan, SublayerPlan, token_keep

Weights = Callable[[int, SublayerPlan], Mapping[str, Tensor]]
"""(block, what the sublayer keeps) -> its tensors by short name; never called for a sublayer that is gone.

Attention: norm [d], q [g*rep*hd, d], k and v [g*hd, d], o [d, g*rep*hd]; FFN: norm [d], gate and up [w, d],
down [d, w], with experts in front where there are some; and whatever else the dense model has: biases `*_bias`, q_norm
and k_norm [hd], router [e, d].
"""

QUERIES = ("q", "q_bias", "o")  # what has a slice for every query head
_SKIP = {"attention": "attention", "ffn": "mlp"}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def assemble(adapter: Decoder, plan: Plan, weights: Weights, dtype: torch.dtype) -> PreTrainedModel:
    """The model that holds only what `plan` keeps, in eval mode and `dtype`, on the dense model's device.

    `adapter.model` is the dense model: the source of config and all that is outside blocks; it is not changed and
    shares no memory with the result, which is of the family's stock class where its config can express the plan, else
    of the mixed one. Raises ExportError when a tensor does not fit.
    """
    config = plain_config(adapter, plan) or mixed_config(adapter, plan)
    if named := {name: [pattern.text, option] for name, (pattern, option) in masks(plan).items()}:
        config.autoprune_masks = named
    return build(adapter, config, plan, weights, dtype)


def plain_config(adapter: Decoder, plan: Plan) -> PreTrainedConfig | None:
    """The stock config of a plan with equal blocks, nothing gone and sizes it accepts; None otherwise."""
    sizes, layout = _sizes(adapter, plan), adapter.layout
    if any(s.gone for s in plan.sublayers) or any(s != sizes[0] for s in sizes) or _cuts(plan):
        return None
    if any(token_keep(s) for s in plan.sublayers):
        return None
    wanted = dict(sizes[0])
    if layout.fixed_heads and wanted.pop(layout.heads) != adapter.shape.heads:
        return None
    try:
        return layout.stock.config_class(**(_carried(adapter) | wanted))  # type: ignore[no-any-return]
    except (ValueError, StrictDataclassError):
        return None


def mixed_config(adapter: Decoder, plan: Plan) -> PreTrainedConfig:
    """The config of any plan: the commonest sizes as global ones, the rest per block."""
    sizes, dense = _sizes(adapter, plan), _dense_sizes(adapter)
    common = {name: _commonest([s[name] for s in sizes if name in s]) or dense[name] for name in dense}
    common |= _commonest_attention(adapter, sizes)
    blocks: dict[int, dict[str, Any]] = {}
    rules = {keep[0] for s in plan.sublayers if (keep := token_keep(s))}
    common |= {f"{KEEP}{rule}": 100 for rule in rules}
    for i, own in enumerate(sizes):
        blocks[i] = dict(own)
        if skip := [_SKIP[kind] for kind in KINDS if plan.at(i, kind).gone]:
            blocks[i]["skip"] = skip
        if keep := token_keep(plan.at(i, "attention")):
            blocks[i][f"{KEEP}{keep[0]}"] = keep[1]
    for i, policy in _cuts(plan).items():
        blocks[i]["kv_cache"] = {"policy": policy.name, **asdict(policy)}
    family = adapter.layout.mixed.config_class
    return family(**(_carried(adapter) | common | {"per_layer_config": blocks}))  # type: ignore[no-any-return]


def _cuts(plan: Plan) -> dict[int, KVPolicy]:
    """The policies of those KV caches that do not keep everything, by block."""
    attention = {i: plan.at(i, "attention") for i in range(plan.blocks)}
    found = {i: policy_of(s) for i, s in attention.items() if not s.gone}
    return {i: policy for i, policy in found.items() if policy is not None}


def build(
    adapter: Decoder, config: PreTrainedConfig, plan: Plan, weights: Weights, dtype: torch.dtype
) -> PreTrainedModel:
    """As `assemble`, with the config (and by it the class) given."""
    config.dtype = dtype
    dense, layout = adapter.model, adapter.layout
    family = layout.mixed if isinstance(config, layout.mixed.config_class) else layout.stock
    with torch.device("meta"):
        small: Any = family(config)
    state = {name: _copied(t, dtype, dense.device) for name, t in _kept(adapter, plan, weights)}
    return filled(small, state, dense)


def filled(small: Any, state: Mapping[str, Tensor], dense: Any) -> PreTrainedModel:
    """A model made on no device, with these parameters and the dense model's buffers, in eval mode."""
    small.load_state_dict(dict(state), strict=True, assign=True)
    small.tie_weights()
    # not in the state: rotary frequencies and scales, in the dtype they are in, as they were before any long text
    buffers: dict[str, Tensor] = dict(dense.named_buffers())
    for name in dict(small.named_buffers()):
        owner, _, short = name.rpartition(".")
        source = buffers.get(f"{owner}.original_{short}", buffers[name])
        setattr(small.get_submodule(owner), short, source.clone())
    if dense.can_generate():
        small.generation_config = _generation(dense)
    assembled: PreTrainedModel = small.eval()
    return assembled


def _kept(adapter: Decoder, plan: Plan, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Full names and tensors, those of blocks checked against the shapes that the plan asks for."""
    inside = f"{adapter.layout.blocks}."
    for name, parameter in adapter.model.named_parameters(remove_duplicate=False):
        if not name.startswith(inside):
            yield name, parameter
    for block in range(plan.blocks):
        for kind in KINDS:
            sublayer = plan.at(block, kind)
            if not sublayer.gone:
                given = dict(weights(block, sublayer))
                _check_shapes(adapter, block, sublayer, given)
                yield from adapter.layout.write(block, kind, given)


def _check_shapes(adapter: Decoder, block: int, sublayer: SublayerPlan, given: Mapping[str, Tensor]) -> None:
    kind: Kind = sublayer.kind
    dense, units = adapter.weights(block, kind), adapter.all_units(kind)
    where = f"block {block}'s {kind}"
    for short, tensor in dense.items():
        if short not in given:
            raise ExportError(f"{where} was given no {short}")
        needed = list(tensor.shape)
        for setting, owned in units.items():
            if short in owned.slices:
                dim, size = owned.slices[short]
                needed[dim] = size * int(sublayer.get(setting, owned.count))
                if short in QUERIES and kind == "attention":
                    needed[dim] = (
                        needed[dim] // adapter.shape.heads_per_group * group_heads(adapter.shape, sublayer)
                    )
        if list(given[short].shape) != needed:
            raise ExportError(f"{where}: {short} is {list(given[short].shape)}, the plan needs {needed}")
    if unknown := sorted(given.keys() - dense.keys()):
        raise ExportError(f"{where} was given {unknown}, which this model has no place for")


def _copied(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous copy."""
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor.detach())


def _dense_sizes(adapter: Decoder) -> dict[str, int]:
    shape = adapter.shape
    plain = adapter.layout.sizes(shape.heads, shape.kv_groups, shape.ffn)
    return plain | adapter.layout.routing(shape.experts, shape.experts_per_token)


def _sizes(adapter: Decoder, plan: Plan) -> list[dict[str, int]]:
    """Config sizes of each block's sublayers that are not gone; refuses a plan of another model."""
    shape, layout = adapter.shape, adapter.layout
    if plan.blocks != shape.blocks:
        raise ExportError(f"the plan has {plan.blocks} blocks, the model {shape.blocks}")
    sizes = []
    for block, (g, w) in enumerate(plan.widths()):
        if not (0 <= g <= shape.kv_groups and 0 <= w <= shape.ffn):
            raise ExportError(
                f"block {block} of the plan keeps {g} KV groups and FFN width {w}; "
                f"allowed: 0..{shape.kv_groups} and 0..{shape.ffn}"
            )
        routing = layout.routing(*_routing(adapter, block, plan.at(block, "ffn"))) if w else {}
        heads = group_heads(shape, plan.at(block, "attention"))
        if g and not 0 < heads <= shape.heads_per_group:
            raise ExportError(
                f"block {block} of the plan keeps {heads} query heads a KV group; allowed: 1..{shape.heads_per_group}"
            )
        sizes.append(layout.sizes(g * heads, g, w) | routing)
    return sizes


def _routing(adapter: Decoder, block: int, sublayer: SublayerPlan) -> tuple[int, int]:
    """Experts, and experts per token; ExportError when they are not of this model, or of a width that would not run."""
    shape = adapter.shape
    width = int(sublayer.get("width"))
    if shape.experts and width % EXPERT_MULTIPLE and width != shape.ffn:
        raise ExportError(
            f"block {block} of the plan has experts of width {width}; only multiples of {EXPERT_MULTIPLE} run"
        )
    experts = int(sublayer.get("experts", shape.experts))
    used = int(sublayer.get("experts_per_token", shape.experts_per_token))
    if experts and not (0 < used <= experts <= shape.experts):
        raise ExportError(
            f"block {block} of the plan keeps {experts} experts, {used} per token; "
            f"allowed: up to {shape.experts}, and no more per token than are kept"
        )
    return experts, used


def _carried(adapter: Decoder) -> dict[str, Any]:
    """All settings that no plan changes: rope, eps, activation, token ids …"""
    config = adapter.model.config
    left = {"model_type", "architectures", "transformers_version", "auto_map", "dtype", "_name_or_path"}
    left |= _dense_sizes(adapter).keys()
    carried = {k: v for k, v in copy.deepcopy(config.to_dict()).items() if k not in left}
    if not adapter.layout.fixed_heads:
        carried["head_dim"] = adapter.shape.head_dim
    return carried | {"attn_implementation": config._attn_implementation}


def _commonest_attention(adapter: Decoder, sizes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Heads and groups of one block: those of different blocks need not be multiples; nothing where all are gone."""
    names = [n for n in (adapter.layout.heads, adapter.layout.groups) if n is not None]
    found = Counter(tuple(s[n] for n in names) for s in sizes if names[0] in s)
    best = max(found, key=lambda value: (found[value], value), default=())
    return dict(zip(names, best, strict=False))


def _commonest(values: Sequence[int]) -> int:
    """The most frequent value, the largest of equals; 0 when there is none."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value), default=0)


def _generation(model: PreTrainedModel) -> GenerationConfig:
    """The dense model's, less the sampling settings that greedy decoding ignores and saving refuses."""
    config = copy.deepcopy(model.generation_config)
    try:
        config.validate(strict=True)
    except ValueError:
        if not config.do_sample:
            for name in _SAMPLING:
                setattr(config, name, None)
    return config
