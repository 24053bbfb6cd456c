"""A run folder from a stranger cannot name code of its choice."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.safety import check_targets

OURS = {"search": {"_target_": "autoprune.space.CostTable", "metric": "x"}, "seed": 0, "uniform": [0.5]}


def test_our_own_classes_pass() -> None:
    check_targets(OmegaConf.create(OURS))
    check_targets(OURS)
    cfg = compose(["model=x"])
    check_targets(OmegaConf.create({"space": OmegaConf.to_container(cfg.space)}))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "shutil.copyfile",
        "autoprune.cli.os.system",
        "autoprune.cli.sys.exit",
        "autoprune.commands.stopping.Path",
        "autoprune.objective.np.save",
        "autoprune.cli.main",
        "autoprune.cli",
        "autoprune.space.Nothing",
        "autoprune_evil.Thing",
        "evaluators.",
        "",
        None,
        3,
        ["os", "system"],
        {"x": "os.system"},
    ],
)
def test_anything_else_is_refused(target: Any) -> None:
    with pytest.raises(SettingError, match=r"search\._target_=.*--trust"):
        check_targets(OmegaConf.create({"search": {"_target_": target}}))


@pytest.mark.parametrize(
    "cfg",
    [
        {"a": [{"b": {"_target_": "os.system"}}]},
        {"search": {**OURS["search"], "inner": {"_target_": "os.system"}}},  # type: ignore[dict-item]
        {"_target_": "os.system"},
    ],
)
def test_every_depth_is_looked_at(cfg: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"_target_=os\.system"):
        check_targets(OmegaConf.create(cfg))


@pytest.mark.parametrize("value", [True, "true", 1])
def test_a_stored_trust_in_remote_code_is_refused(value: object) -> None:
    check_targets(OmegaConf.create({"trust_remote_code": False}))
    with pytest.raises(SettingError, match=r"trust_remote_code=.*--trust"):
        check_targets(OmegaConf.create({"trust_remote_code": value}))


@pytest.mark.parametrize(
    "text",
    [
        "search: '${oc.create:\"_target_: os.system\"}'",
        "search: {_target_: '${x}'}\nx: os.system",
        "search:\n  '${x}': 1",
        "search: [1, '\\${oc.env:HOME}']",
    ],
)
def test_interpolations_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--trust"):
        check_targets(OmegaConf.create(text))
