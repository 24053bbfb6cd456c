"""Trains the built-in models that read: `autoprune zoo train docs-llama`, `docs-moe`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoprune.objective import Split
from autoprune.zoo import docs

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, besides the corpus and the library versions."""

    tokens: int = 22_000_000
    step_tokens: int = 4096
    window: int = 256  # tokens a sequence
    learning_rate: float = 3e-3
    warmup: float = 0.02  # share of the steps
    weight_decay: float = 0.1
    evaluate_every: int = 250  # steps
    selection_windows: int = 192
    vocabulary: int = 2048
    seed: int = 0


COMMON = {
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "docs-llama": {
        **COMMON,
        "model_type": "llama",
        "hidden_size": 144,
        "intermediate_size": 256,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 24,
    },
    "docs-moe": {
        **COMMON,
        "model_type": "qwen3_moe",
        "hidden_size": 128,
        "moe_intermediate_size": 48,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.01,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}
RECIPES = {"docs-llama": Recipe(), "docs-moe": Recipe(tokens=4_000_000, evaluate_every=122)}


def train(name: str, to: Path, recipe: Recipe, say: Say = print) -> dict[str, Any]:
    """Train tokenizer and model on the documentation corpus, keep the weights of lowest selection loss, write `to`.

    Returns the figures of the card. One thread; bf16 autocast, fp32 weights and optimiser state.
    """
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    say("reading the corpus")
    corpus = docs.text(Split.TRAIN)
    tokenizer = train_tokenizer(corpus, recipe.vocabulary)
    tokens = np.array(tokenizer.encode(corpus).ids, dtype=np.uint16)
    held_out = {s: _windows(tokenizer, s, recipe.window) for s in (Split.SELECTION, Split.TEST)}
    say(f"{len(tokens):,} training tokens, {len(corpus) / len(tokens):.2f} characters each")
    model = build(name, recipe)

    def keep(
        state: dict[str, torch.Tensor],
    ) -> None:  # at once: an hour of training is not lost to a later error
        copied = build(name, recipe)
        copied.load_state_dict(state)
        write(copied.to(torch.bfloat16), tokenizer, to)

    best, best_loss, step_of_best = fit(model, tokens, held_out[Split.SELECTION], recipe, say, keep)
    model.load_state_dict(best)
    model = model.to(torch.bfloat16)
    test_nll = mean_nll(model.float(), held_out[Split.TEST])
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(tokens),
        "selection_nll": best_loss,
        "best_step": step_of_best,
        "test_nll": test_nll,
        "test_perplexity": math.exp(test_nll),
        "test_tokens": int(held_out[Split.TEST].size),
        "test_characters_per_token": len(docs.text(Split.TEST)) / held_out[Split.TEST].size,
        "corpus": corpus_identity(),
        "recipe": asdict(recipe),
    }
    return figures


def corpus_identity() -> str:
    """Versions that decide the corpus, and a digest of its test split."""
    import hashlib
    import platform
    from importlib.metadata import version

    packages = ", ".join(f"{p} {version(p)}" for p in docs.PACKAGES)
    test = hashlib.sha256(docs.text(Split.TEST).encode()).hexdigest()[:12]
    return f"Python {platform.python_version()}, {packages}; test split {test}"


SHOWN = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size"),
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
)


def build(name: str, recipe: Recipe) -> Any:
    """A randomly initialised model of a built-in architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(ARCHITECTURES[name])
    config = AutoConfig.for_model(sizes.pop("model_type"), vocab_size=recipe.vocabulary, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation("eager")  # its backward is three times faster here than the fused one's
    scale = 0.02 / math.sqrt(2 * config.num_hidden_layers)
    for path, parameter in model.named_parameters():
        if path.removesuffix(".weight").endswith(("o_proj", "down_proj")):
            torch.nn.init.normal_(parameter, std=scale)
    return model


def train_tokenizer(corpus: str, vocabulary: int, special: Sequence[str] = ("<s>", "<pad>")) -> Any:
    """Byte-level BPE on the train split only, with these special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.split("\n\n"), trainer)
    return tokenizer


def fit(
    model: Any,
    tokens: NDArray[np.uint16],
    selection: NDArray[np.uint16],
    recipe: Recipe,
    say: Say,
    keep: Callable[[dict[str, torch.Tensor]], None],
) -> tuple[dict[str, torch.Tensor], float, int]:
    """One-cycle AdamW; `keep` hears of every new best; returns the best state, its selection loss and its step."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
    steps = recipe.tokens // recipe.step_tokens
    best: dict[str, torch.Tensor] = {}
    best_loss, best_step, start = math.inf, 0, time.time()
    for step, batch in enumerate(_batches(tokens, recipe, steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step / steps, recipe.warmup)
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % recipe.evaluate_every == 0 or step == steps:
            held = mean_nll(model, selection[: recipe.selection_windows])
            if held < best_loss:
                best, best_loss, best_step = copy.deepcopy(model.state_dict()), held, step
                keep(best)
            rate = step * recipe.step_tokens / (time.time() - start)
            say(f"step {step}/{steps}  train {loss.item():.3f}  selection {held:.4f}  {rate:,.0f} tokens/s")
    return best, best_loss, best_step


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _batches(tokens: NDArray[np.uint16], recipe: Recipe, steps: int) -> Iterator[torch.Tensor]:
    """Windows [B, T + 1] in a fresh order every pass, shifted by a random offset so that their borders move."""
    rng = np.random.default_rng(recipe.seed)
    queue: list[int] = []
    window, count = recipe.window, max(1, recipe.step_tokens // recipe.window)
    for _ in range(steps):
        while len(queue) < count:
            starts = np.arange(int(rng.integers(window)), len(tokens) - window - 1, window)
            queue.extend(rng.permutation(starts).tolist())
        picked, queue = queue[:count], queue[count:]
        rows = np.stack([tokens[s : s + window + 1] for s in picked])
        yield torch.from_numpy(rows.astype(np.int64))


def _loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    balance = getattr(model.config, "router_aux_loss_coef", None)  # of a router, that it uses all experts
    more = {} if balance is None else {"output_router_logits": True}
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=batch[:, :-1], use_cache=False, **more)
    loss = torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), batch[:, 1:].flatten())
    return loss if balance is None else loss + balance * output.aux_loss


@torch.no_grad()
def mean_nll(model: Any, windows: NDArray[np.uint16]) -> float:
    """Mean next-token negative log-likelihood in nats; windows [N, T] of token ids."""
    total, count = 0.0, 0
    for at in range(0, len(windows), 32):
        ids = torch.from_numpy(windows[at : at + 32].astype(np.int64))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        total, count = total + loss.item(), count + ids[:, 1:].numel()
    return total / count


def _windows(tokenizer: Any, split: Split, window: int) -> NDArray[np.uint16]:
    ids = np.array(tokenizer.encode(docs.text(split)).ids, dtype=np.uint16)
    return ids[: len(ids) // window * window].reshape(-1, window)


def write(model: Any, tokenizer: Any, to: Path) -> None:
    """Save model and tokenizer as a plain transformers folder."""
    from transformers import PreTrainedTokenizerFast

    to.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(to)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<pad>", model_max_length=512
    )
    wrapped.save_pretrained(to)


def train_named(name: str, to: Path, recipe: Recipe | None = None, say: Say = print, data: str = "") -> None:
    """Train a built-in model into `to`, or `images-vit` on `data`, and write its card."""
    if name == IMAGES:
        from autoprune.zoo.images import train_images

        train_images(data, to, say)
        return
    if name in CLASSIFIERS:
        from autoprune.zoo.classifiers import train_classifier

        train_classifier(name, to, say)
        return
    figures = train(name, to, recipe or RECIPES[name], say)
    (to / "README.md").write_text(card(name, figures), encoding="utf-8")
    say(f"{to}: test perplexity {figures['test_perplexity']:.2f}")


def card(name: str, figures: dict[str, Any]) -> str:
    """The model card: sizes, data, figures and the command that remakes them."""
    recipe = figures["recipe"]
    held = ARCHITECTURES[name]
    sizes = ", ".join(f"{k.replace('_', ' ')} {held[k]}" for k in SHOWN if k in held)
    family = {"llama": "Llama", "qwen3_moe": "Qwen3-MoE"}[held["model_type"]]
    return f"""---
library_name: transformers
license: apache-2.0
---
# {name}

{family} architecture ({sizes}), tied embeddings, byte-level BPE of {recipe["vocabulary"]} entries,
{figures["parameters"]:,} parameters, stored in bfloat16.

Trained from scratch on the *train* split of the documentation corpus that every installation carries: the language
topics of `pydoc_data` and the docstrings of the standard library, {", ".join(docs.PACKAGES)}.
None of that text is shipped; see `autoprune/zoo/docs.py`. {recipe["tokens"]:,} tokens of a corpus of
{figures["train_tokens"]:,}, windows of {recipe["window"]}, AdamW, bf16 autocast,
one CPU thread, seed {recipe["seed"]}; the weights of the lowest *selection* loss ({figures["selection_nll"]:.4f} nats
a token, step {figures["best_step"]}).

| split | figure | value |
|---|---|---|
| test | mean negative log-likelihood, nats a token | {figures["test_nll"]:.4f} |
| test | perplexity | {figures["test_perplexity"]:.3f} |
| test | tokens | {figures["test_tokens"]:,} |
| test | characters a token | {figures["test_characters_per_token"]:.3f} |

Corpus: {figures["corpus"]}. Perplexities are comparable only on the same corpus.

Command: `autoprune zoo train {name}`
"""


CLASSIFIERS = ("digits-vit", "docs-bert")
IMAGES = "images-vit"  # trained on what the user has, hence not built in
TRAINED = (*RECIPES, *CLASSIFIERS)
