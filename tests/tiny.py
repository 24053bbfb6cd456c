"""Tiny random models, a tokenizer of bytes and believable text: what the tests of the torch rooms are made from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEAD_DIM, GROUPS, HEADS, HIDDEN, FFN, VOCABULARY = 8, 2, 4, 32, 48, 256
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama(blocks: int = 3, seed: int = 0, noise: float = 0.05, **settings: Any) -> Any:
    """A dense model with random weights; `noise` is added to all of them, norms and biases included."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFN,
        "max_position_embeddings": 256,
    }
    ids = {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | ids | settings))).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    return model


def tokenizer() -> Any:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def save(model: Any, folder: Path) -> Path:
    """A checkpoint folder with the tokenizer of bytes."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@cache
def text(characters: int = 200_000) -> str:
    """Documentation of the language, in name order, as long as asked for."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:characters]


def token_ids(shape: tuple[int, ...], seed: int = 1, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))
