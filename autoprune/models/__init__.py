"""One adapter per model family: block stream, units and slicing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, UnsupportedModelError

if TYPE_CHECKING:
    from autoprune.models.base import Adapter

FAMILIES = {  # config.model_type, also the name of the module -> adapter
    "bert": "BertAdapter",
    "deit": "DeiTAdapter",
    "distilbert": "DistilBertAdapter",
    "gemma": "GemmaAdapter",
    "gpt2": "GPT2Adapter",
    "llama": "LlamaAdapter",
    "mistral": "MistralAdapter",
    "mixtral": "MixtralAdapter",
    "olmoe": "OlmoeAdapter",
    "opt": "OPTAdapter",
    "phi3": "Phi3Adapter",
    "qwen2": "Qwen2Adapter",
    "qwen2_moe": "Qwen2MoeAdapter",
    "qwen3": "Qwen3Adapter",
    "qwen3_moe": "Qwen3MoeAdapter",
    "roberta": "RobertaAdapter",
    "vit": "ViTAdapter",
}


def adapter_for(model: Any, adapter: str | None = None) -> Adapter:
    """The adapter of a loaded model's family, or the class that `adapter` names (PACKAGE.MODULE.CLASS).

    Raises UnsupportedModelError naming the families there are, SettingError for an adapter that cannot be imported.
    """
    if adapter is not None:
        return _named(adapter)(model)  # type: ignore[no-any-return]
    check_family(model.config.model_type)
    return family_class(model.config.model_type)(model)  # type: ignore[no-any-return]


def family_class(family: str) -> Any:
    """The adapter class of a built-in family."""
    return getattr(import_module(f"autoprune.models.{family}"), FAMILIES[family])


def check_family(model_type: str) -> None:
    """Raise UnsupportedModelError unless there is an adapter for this `config.model_type`."""
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model family {model_type!r} has no adapter; supported: {', '.join(FAMILIES)}; "
            "adapter=PACKAGE.MODULE.CLASS names one of your own"
        )


def _named(adapter: str) -> Any:
    module, _, name = adapter.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(
            f"adapter={adapter} cannot be imported: {error}; name it PACKAGE.MODULE.CLASS"
        ) from error
