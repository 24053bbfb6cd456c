"""A random model and a text, both tiny: for benchmarks that look at how a search runs, not at what it finds."""

from __future__ import annotations

from pathlib import Path

SETTINGS = (
    *("tokens=12000", "window=32", "calibration.tokens=1024", "selection_windows=12", "test_windows=12"),
    *("finalists=12", "front_points=4", "uniform=[0.8,0.5]", "latency.mode=off", "quiet=true"),
    *("search=nsga2", "search.windows=4", "search.population=12"),
)
CHARACTERS = 200_000


def make(folder: Path) -> list[str]:
    """Write model and text into `folder`; the settings of a search of some seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "model")
    _tokenizer(folder / "model")
    (folder / "text.txt").write_text(_text(), encoding="utf-8")
    return [f"model={folder / 'model'}", f"data={folder / 'text.txt'}", *SETTINGS]


def _tokenizer(to: Path) -> None:
    """One token a byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(to)


def _text() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:CHARACTERS]
