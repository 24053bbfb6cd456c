"""One adapter per model family: block stream, units and slicing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoprune.errors import UnsupportedModelError

if TYPE_CHECKING:
    from autoprune.models.base import Adapter


def adapter_for(model: Any) -> Adapter:
    """The adapter of a loaded model's family; raises UnsupportedModelError naming those that exist."""
    from autoprune.models.llama import LlamaAdapter

    families: dict[str, type[LlamaAdapter]] = {"llama": LlamaAdapter}
    family = families.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model family {model.config.model_type!r} has no adapter; supported: {', '.join(sorted(families))}"
        )
    return family(model)
