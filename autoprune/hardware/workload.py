"""What is timed: one prefill and a few decoding steps of a causal language model, one forward of a classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from autoprune.errors import SettingError
from autoprune.hardware.graphs import Replay, replayed
from autoprune.hardware.timing import Call, Progress, Samples, interleaved, torch_threads

METRICS = ("prefill", "decode")


def metrics_of(task: str) -> tuple[str, ...]:
    """What is timed of a model: a classifier only reads."""
    return METRICS if task == "text" else METRICS[:1]


@dataclass(frozen=True)
class Workload:
    """Sizes of what is timed. `context` is the length of the cache that decoding starts from."""

    batch: int = 1
    prefill_tokens: int = 256
    context: int = 256
    decode_steps: int = 8
    threads: int = 1
    rounds: int = 15

    def __post_init__(self) -> None:
        for field in fields(self):
            least = {"context": 0, "rounds": 5}.get(field.name, 1)
            if getattr(self, field.name) < least:
                value = getattr(self, field.name)
                raise SettingError(f"workload.{field.name}={value} must be at least {least}")

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of one forward pass, by metric."""
        return {"prefill": self.batch * self.prefill_tokens, "decode": self.batch}

    @property
    def sizes(self) -> tuple[dict[str, int], int, int]:
        """What latencies are told by: tokens of a forward pass by metric, the prompt before decoding, and its steps."""
        return self.tokens, max(self.context, 1), self.decode_steps


class Prefill:
    """One forward of [batch, prefill_tokens] ids into an empty cache; logits of the last position only.

    The empty cache is made once and copied: making it from a configuration with per-layer sizes costs more
    than from a plain one, which is the library's bookkeeping and no property of the model.
    """

    def __init__(self, model: PreTrainedModel, workload: Workload) -> None:
        _check_length(model, "prefill_tokens", workload.prefill_tokens)
        self.model, self.cache = model, _empty_cache(model)
        self.empty = tuple(self.cache.layers)
        self.ids = _ids(model, workload.batch, workload.prefill_tokens)
        self.positions = torch.arange(workload.prefill_tokens, device=model.device)[None]

    def __call__(self) -> None:
        """Run it once."""
        self.cache.layers = [copy.copy(layer) for layer in self.empty]
        _forward(self.model, self.ids, self.positions, self.cache)


class Decode:
    """A forward of one token, `decode_steps` in turn from a cache of `context` tokens, then again from there.

    Positions are explicit: a model without attention has an empty cache and could not count them. Where a prompt's
    tokens come back the first steps take longest: then a call is all of them (`together`).
    """

    def __init__(self, model: PreTrainedModel, workload: Workload) -> None:
        self.context, self.steps = workload.context, workload.decode_steps
        length = self.context + self.steps
        _check_length(model, "context + decode_steps", length)
        self.model, self.cache = model, _empty_cache(model)
        ids, positions = _ids(model, workload.batch, length), torch.arange(length, device=model.device)[None]
        if self.context:
            _forward(model, ids[:, : self.context], positions[:, : self.context], self.cache)
        self.cache.activate_past_recording()  # what throws tokens away could not be put back otherwise
        steps = range(self.context, length)
        self.tokens = tuple(ids[:, i : i + 1].clone() for i in steps)
        self.positions = tuple(positions[:, i : i + 1].clone() for i in steps)
        self.done = 0
        self.together = self.steps if getattr(getattr(model, "base_model", None), "drops", False) else 1

    def __call__(self) -> None:
        """Run the next step, or all."""
        for _ in range(self.together):
            self._step()

    def _step(self) -> None:
        if self.done == self.steps:
            self.cache.crop(-self.steps)
            self.done = 0
        _forward(self.model, self.tokens[self.done], self.positions[self.done], self.cache)
        self.done += 1

    def held(self) -> list[torch.Tensor]:
        """What the next step reads of the cache, however often it is run."""
        layers = [vars(layer).values() for layer in self.cache.layers]
        return [value for values in layers for value in values if isinstance(value, torch.Tensor)]


class Classify:
    """One forward of a classifier: of [batch, prefill_tokens] ids without padding, or of as many images."""

    def __init__(self, model: PreTrainedModel, workload: Workload) -> None:
        self.model = model
        if model.main_input_name == "pixel_values":
            config: Any = model.config
            shape = (workload.batch, config.num_channels, config.image_size, config.image_size)
            pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
            self.given = {"pixel_values": pixels.to(model.device, model.dtype)}
        else:
            _check_length(model, "prefill_tokens", workload.prefill_tokens)
            ids = _ids(model, workload.batch, workload.prefill_tokens)
            self.given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def __call__(self) -> None:
        """Run it once."""
        with torch.inference_mode():
            self.model(**self.given)


Timed = Prefill | Decode | Classify


def prefill(model: PreTrainedModel, workload: Workload) -> Prefill | Classify:
    """The prefill of a model as a callable."""
    return Prefill(model, workload) if model.can_generate() else Classify(model, workload)


def decode(model: PreTrainedModel, workload: Workload) -> Decode:
    """The decoding steps of a model as a callable, one a call."""
    return Decode(model, workload)


def sample_models(
    models: Mapping[str, PreTrainedModel],
    workload: Workload,
    seed: int = 0,
    progress: Progress | None = None,
    allow_contended: bool = False,
) -> dict[str, dict[str, Samples]]:
    """Seconds per prefill and per decoded token (of the whole batch), all models in one interleaved loop.

    The models are switched to evaluation mode. All of them are in memory at once, on one device. On a GPU calls are
    replayed as CUDA graphs, of a metric all of them or none: the samples say which.
    """
    device = _one_device(models)
    makers: dict[str, dict[str, Callable[[], Call]]] = {metric: {} for metric in METRICS}
    for name, model in models.items():
        model.train(False)
        makers["prefill"][name] = partial(prefill, model, workload)
        if model.can_generate():
            makers["decode"][name] = partial(decode, model, workload)
    steps = {"prefill": 1, "decode": workload.decode_steps}
    with torch_threads(workload.threads):
        calls = {metric: replayed(of, steps[metric], device) for metric, of in makers.items()}
    keys = {
        f"{metric} of {name}": (name, metric)
        for name in models
        for metric in METRICS
        if name in calls[metric]
    }
    items = {key: calls[metric][name] for key, (name, metric) in keys.items()}
    rounds, threads = workload.rounds, workload.threads
    samples = interleaved(
        items, rounds, seed, threads, progress, device=device, allow_contended=allow_contended
    )
    found: dict[str, dict[str, Samples]] = {name: {} for name in models}
    for key, (name, metric) in keys.items():
        of = samples[key].shared(getattr(items[key], "together", 1))
        found[name][metric] = replace(of, graph=isinstance(items[key], Replay))
    return found


def _forward(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> None:
    with torch.inference_mode():
        model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _empty_cache(model: PreTrainedModel) -> Any:
    """A cache for this model; where no block has attention, one that grows on demand.

    (A cache made of layers without attention only cannot be asked for its length, which the model does.)
    """
    cache = DynamicCache(config=model.config)
    return cache if any(hasattr(layer, "get_seq_length") for layer in cache.layers) else DynamicCache()


def _ids(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(model.device)


def _check_length(model: PreTrainedModel, setting: str, length: int) -> None:
    most: Any = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise SettingError(f"workload.{setting}={length} is more than the model's {most} positions")


def _one_device(models: Mapping[str, PreTrainedModel]) -> str:
    devices = sorted({str(model.device) for model in models.values()})
    if len(devices) != 1:
        raise SettingError(
            f"models to compare are on devices {devices}: allowed is one device, and some model"
        )
    return devices[0]
