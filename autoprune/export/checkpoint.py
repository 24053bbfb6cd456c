"""Checkpoints on disk: written whole or not at all, loaded without remote code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from autoprune.errors import ExportError, SettingError, UnsupportedModelError
from autoprune.export.int8 import holds_int8, save_int8, spread_state
from autoprune.export.modeling import (
    modeling_autoprune,
    modeling_autoprune_cache,
    modeling_autoprune_encoder,
    modeling_autoprune_policies,
    modeling_autoprune_prompt,
)
from autoprune.export.packed import save_packed
from autoprune.models import FAMILIES, family_class
from autoprune.models.load import auto_class
from autoprune.pruning.masks.packing import Packed
from autoprune.scratch import scratch_folder
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.kernels.int8 import Rounded

PLAN_FILE = "autoprune_plan.json"
PREFIX = "autoprune_"  # of the model types of mixed checkpoints


def register(*mixed: Any) -> None:
    """Make transformers' Auto classes know mixed classes, and saving copy their modelling files. Idempotent.

    Without arguments those of all built-in families.
    """
    for family in mixed or [family_class(name).layout.mixed for name in FAMILIES]:
        config, auto = family.config_class, auto_class([family.__name__])
        AutoConfig.register(config.model_type, config, exist_ok=True)
        auto.register(config, family, exist_ok=True)
        config.register_for_auto_class(AutoConfig.__name__)
        family.register_for_auto_class(auto.__name__)


def check_destination(to: Path) -> Path:
    """The absolute folder to write, its parent made; SettingError unless it is new or empty, and writable."""
    target = Path(os.path.abspath(to.expanduser()))
    try:
        if target.exists() and not target.is_dir():
            raise SettingError(f"--to {to} is a file; name a folder that is new or empty")
        if target.is_dir() and any(target.iterdir()):
            raise SettingError(f"--to {to} is not empty; name a folder that is new or empty")
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(to, error.strerror) from error
    if not os.access(target if target.exists() else target.parent, os.W_OK | os.X_OK):
        raise _unwritable(to, "permission denied")
    return target.resolve()


def _unwritable(to: Path, reason: str | None) -> SettingError:
    return SettingError(f"--to {to} cannot be written: {reason}; name a folder you may write")


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    to: Path,
    card: str,
    plan: Plan,
    packed: Mapping[str, Packed] | None = None,
    int8: Mapping[str, Rounded] | None = None,
) -> None:
    """Write weights (safetensors), config, modelling file where needed, tokenizer, card and plan into `to`.

    `packed`: masked matrices in their packed form, for a file of their own. `int8`: linear maps in int8, stored in
    place of the model's own.

    Everything goes to a hidden folder beside `to` first, which is renamed when complete. Raises SettingError
    for a destination that is not empty or not writable, ExportError when writing fails.
    """
    target = check_destination(to)
    with ExitStack() as held:
        try:
            scratch = held.enter_context(scratch_folder(target.parent, f".{target.name}.partial-"))
            partial = scratch / target.name
            partial.mkdir()
        except OSError as error:
            raise _unwritable(to, error.strerror) from error
        try:
            _write(model, tokenizer, partial, card, plan)
            if packed:
                save_packed(packed, partial)
            if int8:
                save_int8(int8, partial)
            if target.is_dir():
                target.rmdir()  # empty, see check_destination; some systems do not rename onto a folder
            partial.rename(target)
        except (OSError, SafetensorError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExportError(f"the checkpoint {to} could not be written: {reason}") from error


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, card: str, plan: Plan
) -> None:
    if isinstance(model, (modeling_autoprune.MixedForCausalLM, modeling_autoprune_encoder.MixedEncoder)):
        register(type(model))
    model.save_pretrained(folder)
    _make_self_contained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / PLAN_FILE).write_text(plan.to_json() + "\n", encoding="utf-8")


def _make_self_contained(folder: Path) -> None:
    """A modelling file of the user's own imports the shared one from here; its copy takes the one beside it."""
    shared = Path(str(modeling_autoprune.__file__))
    for file in folder.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        if f"from {modeling_autoprune.__name__} import" in source:
            source = source.replace(
                f"from {modeling_autoprune.__name__} import", f"from .{shared.stem} import"
            )
            file.write_text(source, encoding="utf-8")
            own = (modeling_autoprune_cache, modeling_autoprune_policies, modeling_autoprune_prompt)
            for needed in (modeling_autoprune, *own):
                path = Path(str(needed.__file__))
                shutil.copyfile(path, folder / path.name)


def load_checkpoint(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A saved checkpoint in eval mode, in its own dtype unless told; raises UnsupportedModelError."""
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder} holds no checkpoint: it has no config.json")
    try:
        architectures = _register_family(folder)
        auto = auto_class(architectures)
        if holds_int8(folder):
            return _of_state(auto, folder, dtype)
        wanted: Any = {"dtype": dtype or "auto", "local_files_only": True}
        found: Any = auto.from_pretrained(folder, **wanted)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModelError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    loaded: PreTrainedModel = found.eval()
    return loaded


def _of_state(auto: Any, folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """A checkpoint whose weights are partly stored in int8, all of them spread out."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    family = auto._model_mapping[type(config)]
    found, seen = family.from_pretrained(
        None,
        config=config,
        state_dict=spread_state(folder),
        dtype=dtype or config.dtype,
        output_loading_info=True,
    )
    if wrong := sorted([*seen["missing_keys"], *seen["unexpected_keys"], *seen["mismatched_keys"]]):
        raise ValueError(f"its weights are not those of its config: {wrong[0]}")
    loaded: PreTrainedModel = found.eval()
    if loaded.can_generate() and (folder / "generation_config.json").is_file():
        loaded.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return loaded


def family_of(model_type: str) -> str:
    """The family that a model type, perhaps that of a mixed class, belongs to."""
    return model_type.removeprefix(PREFIX)


def _register_family(folder: Path) -> list[str]:
    """Where the checkpoint is a mixed one of a built-in family; returns the architectures that it names."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type, architectures = str(config.get("model_type", "")), list(config.get("architectures") or ())
    family = family_of(model_type)
    if family != model_type and family in FAMILIES:
        layouts = family_class(family).layouts()
        named = [layout.mixed for layout in layouts if layout.mixed.__name__ in architectures]
        register(*(named or [layouts[0].mixed]))
    return architectures
