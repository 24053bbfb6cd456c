"""The two terms of the loss, against their definitions."""

from __future__ import annotations

import pytest
import torch

from autoprune.recovery.loss import hidden_error, logit_kl


def test_logit_kl_is_the_mean_over_tokens_of_kl_to_the_teacher() -> None:
    teacher, student = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)).double()
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert float(logit_kl(teacher, student)) == pytest.approx(
        float((p * (p / q).log()).sum(-1).mean()), rel=1e-5
    )
    assert float(logit_kl(teacher, student)) != pytest.approx(float(logit_kl(student, teacher)), rel=1e-3)
    assert float(logit_kl(teacher, teacher + 3)) == pytest.approx(0, abs=1e-6)


def test_hidden_error_is_in_units_of_the_teachers_variance() -> None:
    small, large = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    large = 100 * large
    off = hidden_error([small, large], [small + 1, large + 100])
    assert float(off) == pytest.approx(float(1 / small.var() + 1e4 / large.var()) / 2, rel=1e-4)
    assert float(hidden_error([small], [small.mean().expand_as(small)])) == pytest.approx(1, rel=0.02)
    with pytest.raises(ValueError):
        hidden_error([small, large], [small])
