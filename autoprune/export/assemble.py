"""From a plan and the kept weights to the physically smaller model."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from autoprune.errors import ExportError, UnsupportedModelError
from autoprune.export.modeling.modeling_autoprune_llama import AutopruneLlamaConfig, AutopruneLlamaForCausalLM
from autoprune.space import KINDS, Kind, Plan, SublayerPlan

Weights = Callable[[int, SublayerPlan], Mapping[str, Tensor]]
"""(block, what the sublayer keeps) -> its tensors by short name; never called for a sublayer that is gone.

Attention: norm [d], q [g*rep*hd, d], k and v [g*hd, d], o [d, g*rep*hd]; FFN: norm [d], gate and up [w, d],
down [d, w]; and q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias where the dense model has them.
"""

_NORM = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
_MATRICES = {"attention": ("self_attn", ("q", "k", "v", "o")), "ffn": ("mlp", ("gate", "up", "down"))}
_SKIP = {"attention": "attention", "ffn": "mlp"}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def assemble(model: PreTrainedModel, plan: Plan, weights: Weights, dtype: torch.dtype) -> PreTrainedModel:
    """The model that holds only what `plan` keeps, in eval mode and `dtype`, on the dense model's device.

    `model` is the dense LlamaForCausalLM: the source of config, embedding, final norm and head; it is not
    changed and shares no memory with the result, which is a plain LlamaForCausalLM where the stock config can
    express the plan, else an AutopruneLlamaForCausalLM. Raises ExportError when a tensor does not fit.
    """
    return build(model, plain_config(model, plan) or mixed_config(model, plan), plan, weights, dtype)


def plain_config(model: PreTrainedModel, plan: Plan) -> LlamaConfig | None:
    """The stock config of a plan with equal blocks, nothing gone and sizes it accepts; None otherwise."""
    sizes = _sizes(model, plan)
    if any(s.gone for s in plan.sublayers) or any(s != sizes[0] for s in sizes):
        return None
    try:
        return LlamaConfig(**(_carried(model) | sizes[0]))
    except (ValueError, StrictDataclassError):
        return None


def mixed_config(model: PreTrainedModel, plan: Plan) -> AutopruneLlamaConfig:
    """The config of any plan: the commonest sizes as global ones, the rest per block."""
    sizes = _sizes(model, plan)
    common = {name: _commonest([s[name] for s in sizes if name in s]) for name in _dense_sizes(model)}
    for name, value in _dense_sizes(model).items():
        common[name] = common[name] or value
    blocks: dict[int, dict[str, Any]] = {}
    for i, own in enumerate(sizes):
        blocks[i] = dict(own)
        if skip := [_SKIP[kind] for kind in KINDS if plan.at(i, kind).gone]:
            blocks[i]["skip"] = skip
    return AutopruneLlamaConfig(**(_carried(model) | common | {"per_layer_config": blocks}))


def build(
    model: PreTrainedModel, config: LlamaConfig, plan: Plan, weights: Weights, dtype: torch.dtype
) -> PreTrainedModel:
    """As `assemble`, with the config (and by it the class) given."""
    config.dtype = dtype
    with torch.device("meta"):
        small: Any = (
            AutopruneLlamaForCausalLM(config)
            if isinstance(config, AutopruneLlamaConfig)
            else LlamaForCausalLM(config)
        )
    shapes = {name: parameter.shape for name, parameter in small.named_parameters(remove_duplicate=False)}
    state = {name: _copied(t, dtype, model.device) for name, t in _kept(model, plan, weights, shapes)}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    small.load_state_dict(state, strict=True, assign=True)
    small.tie_weights()
    # not in the state: computed anew, in float32 whatever the dtype, as loading a checkpoint does
    small.model.rotary_emb = LlamaRotaryEmbedding(config).to(model.device)
    small.generation_config = _generation(model)
    assembled: PreTrainedModel = small.eval()
    return assembled


def _kept(
    model: PreTrainedModel, plan: Plan, weights: Weights, shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Tensor]]:
    """Full names and tensors, each checked against the shape that the plan asks for."""
    dense: Any = model
    yield "model.embed_tokens.weight", dense.model.embed_tokens.weight
    yield "model.norm.weight", dense.model.norm.weight
    if not model.config.tie_word_embeddings:
        yield "lm_head.weight", dense.lm_head.weight
    for block in range(plan.blocks):
        for kind in KINDS:
            sublayer = plan.at(block, kind)
            if not sublayer.gone:
                yield from _sublayer(block, kind, dict(weights(block, sublayer)), shapes)


def _sublayer(
    block: int, kind: Kind, given: dict[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Tensor]]:
    where = f"block {block}'s {kind}"
    for short, name in _names(block, kind).items():
        if name not in shapes:
            continue  # a bias that this model does not have
        if short not in given:
            raise ExportError(f"{where} was given no {short}")
        tensor = given.pop(short)
        if tensor.shape != shapes[name]:
            needed = list(shapes[name])
            raise ExportError(f"{where}: {short} is {list(tensor.shape)}, the plan needs {needed}")
        yield name, tensor
    if given:
        raise ExportError(f"{where} was given {sorted(given)}, which this model has no place for")


def _names(block: int, kind: Kind) -> dict[str, str]:
    """Short names of `Weights` -> parameter names."""
    prefix = f"model.layers.{block}"
    module, matrices = _MATRICES[kind]
    names = {"norm": f"{prefix}.{_NORM[kind]}.weight"}
    for short in matrices:
        names[short] = f"{prefix}.{module}.{short}_proj.weight"
        names[f"{short}_bias"] = f"{prefix}.{module}.{short}_proj.bias"
    return names


def _copied(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous copy."""
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor.detach())


def _dense_sizes(model: PreTrainedModel) -> dict[str, int]:
    config = model.config
    return {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
    }


def _sizes(model: PreTrainedModel, plan: Plan) -> list[dict[str, int]]:
    """Config sizes of each block's sublayers that are not gone; refuses a plan of another model."""
    if model.config.model_type != "llama":
        raise UnsupportedModelError(f"cannot export model type {model.config.model_type!r}; allowed: 'llama'")
    dense = _dense_sizes(model)
    heads, groups, width = dense.values()
    if plan.blocks != model.config.num_hidden_layers:
        raise ExportError(f"the plan has {plan.blocks} blocks, the model {model.config.num_hidden_layers}")
    sizes = []
    for block, (g, w) in enumerate(plan.widths()):
        if not (0 <= g <= groups and 0 <= w <= width):
            raise ExportError(
                f"block {block} of the plan keeps {g} KV groups and FFN width {w}; "
                f"allowed: 0..{groups} and 0..{width}"
            )
        attention = {"num_attention_heads": g * (heads // groups), "num_key_value_heads": g} if g else {}
        sizes.append(attention | ({"intermediate_size": w} if w else {}))
    return sizes


def _carried(model: PreTrainedModel) -> dict[str, Any]:
    """All settings that no plan changes: rope, eps, activation, token ids …"""
    config = model.config
    left = {"model_type", "architectures", "transformers_version", "auto_map", "dtype", "_name_or_path"}
    left |= {*_dense_sizes(model), "head_dim"}
    carried = {k: v for k, v in copy.deepcopy(config.to_dict()).items() if k not in left}
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return carried | {"head_dim": head_dim, "attn_implementation": config._attn_implementation}


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
