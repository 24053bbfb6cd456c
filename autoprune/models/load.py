"""Finds and loads a model by built-in name, folder or hub id."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import UnsupportedModelError, nearest
from autoprune.models import check_family
from autoprune.models.preparation import Preparation
from autoprune.zoo import built_in, folder_of

WANTED = (
    "name a built-in model, the folder of a transformers causal language model (or classifier), or a hub id"
)
AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
READS = {  # families that have no causal language model, or are taken for classifiers
    **dict.fromkeys(("bert", "roberta", "distilbert"), "ForSequenceClassification"),
    **dict.fromkeys(("vit", "deit"), "ForImageClassification"),
}


@dataclass(frozen=True)
class Loaded:
    """A model in fp32, its tokenizer (or `Preparation` of images), its checkpoint's dtype, a digest of its files."""

    name: str
    source: str  # folder or hub id that transformers loads
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    digest: str


def load_model(
    name: str,
    trust_remote_code: bool = False,
    any_family: bool = False,
    mappable: Callable[[str], str] | None = None,
) -> Loaded:
    """Load `model=NAME`: a built-in name, a checkpoint folder, or a hub id.

    Tensors that have the right dtype in their file stay there, memory-mapped; `mappable` finds a folder where all have.

    Raises UnsupportedModelError when it does not exist, cannot be read, lacks weights, is neither a causal language
    model nor a classifier, or (unless `any_family`) is of a family without adapter.
    """
    source = _resolve(name)
    files = source if mappable is None else mappable(source)
    with _readable(name):
        config = _config(source, trust_remote_code, any_family)
        found: Any = auto_class(config.architectures or (), config.model_type).from_pretrained(
            files,
            config=config,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
    model, report = found
    _check_complete(name, report)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model.checkpoint_dtype = dtype
    model.eval().requires_grad_(False)
    images = model.main_input_name == "pixel_values"
    reads = Preparation.of(source) if images else _tokenizer(source)
    return Loaded(name, source, model, reads, dtype, _digest(source, model))


def blank_model(name: str, trust_remote_code: bool = False, any_family: bool = False) -> Any:
    """The model of `model=NAME` in fp32 as its class makes it: no weights are read. Raises as `load_model` does."""
    source = _resolve(name)
    with _readable(name):
        config = _config(source, trust_remote_code, any_family)
        known: Any = auto_class(config.architectures or (), config.model_type)
        return known.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What transformers raises means that this checkpoint cannot be used; it says no more than that."""
    from transformers.utils import logging as hf_logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # of many kinds
        raise UnsupportedModelError(
            f"model={name} cannot be loaded: {_first_line(error)}; {WANTED}"
        ) from error


def _config(source: str, trust_remote_code: bool, any_family: bool) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not any_family:
        check_family(config.model_type)
    return config


def auto_class(architectures: Sequence[str], model_type: str = "") -> Any:
    """Transformers' class that finds the model's, from the classes that its config names, or from its family."""
    import transformers

    named = [a for ending, a in AUTO.items() if any(ending in name for name in architectures)]
    if model_type in READS:
        named = [AUTO[READS[model_type]]]
    return getattr(transformers, named[0] if named else "AutoModelForCausalLM")


def _check_complete(name: str, report: dict[str, Any]) -> None:
    """Transformers fills what a checkpoint lacks with random numbers; here that is an error."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"model={name} lacks {len(missing)} of its tensors, the first is {missing[0]}"
        )
    wrong = sorted(tuple(m)[0] for m in report["mismatched_keys"])
    if wrong:
        raise UnsupportedModelError(f"model={name}: {wrong[0]} does not have the size that config.json says")


def _resolve(name: str) -> str:
    if name in built_in():
        return str(folder_of(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModelError(f"model={name} holds no config.json; {WANTED}")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        hint = nearest(name, built_in()) if built_in() else ""
        raise UnsupportedModelError(f"model={name} does not exist; {WANTED}" + hint)
    return name


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception:  # a model without tokenizer can still be profiled; data=… then says what is missing
        return None


def _first_line(error: Exception) -> str:
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _digest(source: str, model: Any) -> str:
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # a model that moves stays the same
    whole = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    folder = Path(source)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    for file in files:
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 22):
                whole.update(chunk)
    if not files:
        for name, tensor in model.state_dict().items():
            whole.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:20]
