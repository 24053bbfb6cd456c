"""The DeiT family: a ViT with a distillation token beside [CLS], which may have its own classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import DeiTForImageClassification, DeiTForImageClassificationWithTeacher

from autoprune.export.modeling.modeling_autoprune_deit import (
    AutopruneDeiTForImageClassification,
    AutopruneDeiTForImageClassificationWithTeacher,
)
from autoprune.models.layout import Layout
from autoprune.models.vit import ViTAdapter


class DeiTAdapter(ViTAdapter):
    """Runs and slices a `DeiTForImageClassification`, with or without the classifier of its distillation token."""

    layout = replace(
        ViTAdapter.layout,
        stock=DeiTForImageClassification,
        mixed=AutopruneDeiTForImageClassification,
        blocks="deit.layers",
        final_norm="deit.layernorm",
    )
    taught = replace(
        layout,
        stock=DeiTForImageClassificationWithTeacher,
        mixed=AutopruneDeiTForImageClassificationWithTeacher,
    )
    base = "deit"
    specials = 2

    def __init__(self, model: Any, exact: bool = False) -> None:
        self._taught = isinstance(model, DeiTForImageClassificationWithTeacher)
        if self._taught:
            self.layout = self.taught  # type: ignore[misc]
        super().__init__(model, exact)

    @classmethod
    def layouts(cls) -> tuple[Layout, ...]:
        """Without and with a teacher."""
        return cls.layout, cls.taught

    def classify(self, hidden: Tensor) -> Tensor:
        """The mean of both classifiers where there are two."""
        if not self._taught:
            return super().classify(hidden)
        last = self._last(hidden)
        both = self.model.cls_classifier(last[:, 0]) + self.model.distillation_classifier(last[:, 1])
        return both / 2  # type: ignore[no-any-return]

    def outside_flops(self) -> int:
        """The second classifier's come on top."""
        return super().outside_flops() + (2 * self.shape.hidden * self.shape.classes if self._taught else 0)
