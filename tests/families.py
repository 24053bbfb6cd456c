"""Tiny random models of every family, in variants; a new family takes one entry."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import transformers

BLOCKS, HEADS, GROUPS, HEAD_DIM, HIDDEN, FFN, VOCABULARY, WINDOW = 3, 4, 2, 8, 32, 24, 61, 6
OUT = {"attention": "self_attn.o_proj", "ffn": "mlp.down_proj"}
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "intermediate_size": FFN,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """Stock classes by their names in transformers, settings of a tiny model, and where its parts stand.

    `out`: the output projections of each sublayer below its block. `variants`: settings to change, by name.
    """

    config: str
    model: str
    variants: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)
    blocks: str = "model.layers"
    out: Mapping[str, str] = field(default_factory=lambda: OUT)
    adapter: str | None = None  # of a family that is not built in
    step: int = 1  # widths are multiples of this
    whole_norms: bool = False  # queries and keys are normed over all heads at once

    def make(self, variant: str, **settings: Any) -> Any:
        """A dense model with random weights, norms and biases included."""
        made = copy.deepcopy(
            {**self.sizes, **IDS, **self.variants[variant], **settings}
        )  # configs write into theirs
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(getattr(transformers, self.config)(**made))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval().requires_grad_(False)


TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2], "long_factor": [2.0, 3.0]}
LONGROPE = {
    "rope_parameters": {**LONG, "partial_rotary_factor": 0.5},
    "original_max_position_embeddings": 64,
    "max_position_embeddings": 128,
}
SOME_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

FAMILIES = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM", {"tied": TIED, "biases": {"attention_bias": True}}),
    "qwen2": Family(
        "Qwen2Config", "Qwen2ForCausalLM", {"untied": UNTIED, "windows": {**TIED, **SOME_WINDOWS}}
    ),
    "qwen3": Family(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {"untied": UNTIED, "windows": {**TIED, **SOME_WINDOWS}, "biases": {"attention_bias": True}},
        {**SIZES, "head_dim": HEAD_DIM},
    ),
    "mistral": Family(
        "MistralConfig",
        "MistralForCausalLM",
        {
            "no_window": {"sliding_window": None},
            "window": {"sliding_window": WINDOW},
            "tied": {**TIED, "head_dim": 4},
        },
    ),
    "gemma": Family(
        "GemmaConfig",
        "GemmaForCausalLM",
        {"tied": TIED, "untied": UNTIED, "one_group": {"num_key_value_heads": 1}},
        {**SIZES, "head_dim": 16},
    ),
    "phi3": Family(
        "Phi3Config",
        "Phi3ForCausalLM",
        {"untied": UNTIED, "window": {**TIED, "sliding_window": WINDOW}, "longrope": LONGROPE},
    ),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"tied": TIED, "untied": UNTIED, "scales": {"scale_attn_by_inverse_layer_idx": True}},
        {
            **{"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS},
            **{"n_inner": FFN, "n_positions": 64},
        },
        "transformer.h",
        {"attention": "attn.c_proj", "ffn": "mlp.c_proj"},
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        {"tied": TIED, "untied": UNTIED, "no_biases": {"enable_bias": False}},
        {
            **{k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")},
            "ffn_dim": FFN,
        },
        "model.decoder.layers",
        {"attention": "self_attn.out_proj", "ffn": "fc2"},
    ),
}
SENTENCES = {
    **{k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")},
    "num_labels": 5,
}
IMAGES = {
    **{"image_size": 12, "patch_size": 4, "num_channels": 2, "hidden_size": HIDDEN, "num_labels": 5},
    **{"num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "intermediate_size": FFN},
}
PADDED = {"padded": {"pad_token_id": 1}}
BERT_OUT = {"attention": "attention.output.dense", "ffn": "output.dense"}
VIT_OUT = {"attention": "attention.o_proj", "ffn": "mlp.fc2"}
ENCODERS = {  # families of classifiers
    "bert": Family(
        "BertConfig",
        "BertForSequenceClassification",
        PADDED,
        {**SENTENCES, "intermediate_size": FFN},
        "bert.encoder.layer",
        BERT_OUT,
    ),
    "roberta": Family(
        "RobertaConfig",
        "RobertaForSequenceClassification",
        PADDED,
        {**SENTENCES, "intermediate_size": FFN},
        "roberta.encoder.layer",
        BERT_OUT,
    ),
    "distilbert": Family(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        PADDED,
        {**SENTENCES, "hidden_dim": FFN},
        "distilbert.transformer.layer",
        {"attention": "attention.out_lin", "ffn": "ffn.lin2"},
    ),
    "vit": Family(
        "ViTConfig",
        "ViTForImageClassification",
        {"plain": {}, "no_biases": {"qkv_bias": False}},
        IMAGES,
        "vit.layers",
        VIT_OUT,
    ),
    "deit": Family("DeiTConfig", "DeiTForImageClassification", {"plain": {}}, IMAGES, "deit.layers", VIT_OUT),
}
TAUGHT = replace(ENCODERS["deit"], model="DeiTForImageClassificationWithTeacher")
EXPERTS, USED, SHARED, STEP = 6, 2, 10, 8
MOE = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
MOE |= {"num_experts": EXPERTS, "num_experts_per_tok": USED}
STACK = {"attention": "self_attn.o_proj", "ffn": "mlp.experts.down_proj"}
NORMED = {"norm_topk_prob": True}
FAMILIES |= {
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "normed": {**UNTIED, **NORMED},
            "window": {**TIED, "use_sliding_window": True, "sliding_window": WINDOW},
            "biases": {**NORMED, "attention_bias": True, "output_router_logits": True},
        },
        {**MOE, "head_dim": HEAD_DIM, "moe_intermediate_size": STEP * FFN},
        out=STACK,
        step=STEP,
    ),
    "mixtral": Family(
        "MixtralConfig",
        "MixtralForCausalLM",
        {"untied": UNTIED, "window": {**TIED, "sliding_window": WINDOW}},
        {**SIZES, "intermediate_size": STEP * FFN, "num_local_experts": EXPERTS, "num_experts_per_tok": USED},
        out=STACK,
        step=STEP,
    ),
    "qwen2_moe": Family(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {"untied": UNTIED, "windows": {**TIED, **SOME_WINDOWS, **NORMED, "max_window_layers": 2}},
        {**MOE, "moe_intermediate_size": STEP * FFN, "shared_expert_intermediate_size": SHARED},
        out={**STACK, "ffn": "mlp.experts.down_proj,mlp.shared_expert.down_proj"},
        step=STEP,
    ),
    "olmoe": Family(
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {"untied": UNTIED, "tied": {**TIED, **NORMED, "num_key_value_heads": HEADS}},
        {**MOE, "intermediate_size": STEP * FFN},
        out=STACK,
        step=STEP,
        whole_norms=True,
    ),
}
CASES = [(name, variant) for name, family in FAMILIES.items() for variant in family.variants]


@cache
def model_of(name: str, variant: str) -> Any:
    """A dense model, made once; not to be changed."""
    return FAMILIES[name].make(variant)
