"""The settings by which a checkpoint's images become pixel values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Preparation:
    """What the checkpoint's own file says; it travels with the checkpoints that are made from it."""

    settings: Mapping[str, Any]

    @staticmethod
    def of(source: str) -> Preparation | None:
        """Of a folder or hub id; None where there is no such file."""
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            found, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except (OSError, ValueError):
            return None
        return Preparation(found)

    def pixels(self) -> dict[str, Any]:
        """`scale`, `mean` and `std` of bytes, where they are said."""
        names = {"scale": "rescale_factor", "mean": "image_mean", "std": "image_std"}
        found = {name: self.settings.get(key) for name, key in names.items()}
        return {name: _plain(value) for name, value in found.items() if value is not None}

    def save_pretrained(self, folder: Path) -> None:
        """Write the file, as a tokenizer writes its own."""
        (Path(folder) / FILE).write_text(json.dumps(dict(self.settings), indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else float(value)
