"""Composing and checking a configuration."""

from __future__ import annotations

import inspect
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from autoprune.config import LOWEST, Config, compose, compose_group, validate
from autoprune.errors import SettingError
from autoprune.safety import check_targets


def test_groups_and_settings_reach_the_configuration() -> None:
    words = [
        "model=x",
        "search=evopress",
        "evaluator=[divergence]",
        "evaluator.divergence.top_k=64",
        "tokens=2e6",
    ]
    cfg = compose(
        [*words, "constraints={decode: 0.6x}", "space.structured.ffn_options=5", "latency.mode=off"]
    )
    assert list(cfg.search.survivors) == [8, 2, 1] and cfg.tokens == 2e6
    of = {"_target_": "evaluators.divergence.Divergence", "top_k": 64, "tail_samples": 32}
    assert cfg.evaluator == {"divergence": of}
    assert (
        cfg.constraints == {"decode": "0.6x"}
        and compose(["model=x", "constraints.params=3"]).constraints.params == 3
    )
    assert cfg.space.structured.ffn_options == 5 and cfg.latency.mode == "off"
    assert "hydra" not in cfg


def test_out_is_absolute_and_fixed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    cfg = compose(["model=x"])
    assert cfg.out.startswith(f"{tmp_path}/results/2") and cfg.out == cfg.out
    assert "${" not in OmegaConf.to_yaml(cfg, resolve=False)


def test_the_demo_is_an_experiment_whose_settings_can_be_changed() -> None:
    cfg = compose(["+experiment=demo", "tokens=5"])
    assert (cfg.model, cfg.tokens) == ("docs-llama", 5) and cfg.out.endswith("results/demo")


def test_nothing_of_hydra_stays_behind() -> None:
    assert not GlobalHydra.instance().is_initialized()
    compose(["model=x"])
    with pytest.raises(SettingError):
        compose(["model=x", "serach=random"])
    assert not GlobalHydra.instance().is_initialized()
    assert compose(["model=x", "search=random"]).search.batch == 32


def test_a_stored_configuration_is_still_valid(tmp_path: object) -> None:
    cfg = compose(["model=x", "constraints={params: 0.6x}"])
    OmegaConf.save(cfg, f"{tmp_path}/config.yaml", resolve=True)
    again = OmegaConf.load(f"{tmp_path}/config.yaml")
    assert again == OmegaConf.create(OmegaConf.to_container(cfg))
    validate(again)  # type: ignore[arg-type]
    again.serach = 1
    with pytest.raises(SettingError, match="unknown setting 'serach'; did you mean 'search'"):
        validate(again)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted(LOWEST))
def test_numbers_below_their_bound_are_refused(key: str) -> None:
    low = LOWEST[key]
    assert OmegaConf.select(compose(["model=x", f"{key}={low}"]), key) == low
    with pytest.raises(SettingError, match=rf"{key}={low - 1}.* at least {low}$"):
        compose(["model=x", f"{key}={low - 1}"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tokens=nan", "tokens=nan is out of range; it must be a finite number of at least 1"),
        ("tokens=inf", "tokens=inf is out of range"),
        ("seconds=0", "seconds=0.0 is out of range; it must be a finite number above 0"),
        ("baselines=[uniform,owls]", "baselines holds 'owls', which is unknown; did you mean 'owl'"),
        ("baselines=[owl,owl]", "baselines=['owl', 'owl']: name each once"),
        ("uniform=[0.5,1.5]", "uniform holds 1.5; each ratio must be above 0 and at most 1"),
        ("latency.mode=of", "latency.mode=of is unknown; did you mean 'off'?"),
        ("objectives=[]", "name at least one metric"),
        ("objectives=[kl,kl]", "each once"),
        ("space=[]", "space=… is required"),
        ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer"),
        ("+latency.fil=3", "unknown setting 'latency.fil'; did you mean 'file'?"),
    ],
)
def test_what_is_not_allowed_is_named(setting: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        compose(["model=x", setting])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_bound_belongs_to_a_setting() -> None:
    schema = OmegaConf.structured(Config)
    unset = (
        "evaluations",
        "calibration.tokens",
        "prompt_len",
        "device_mb",
        "host_mb",
    )  # null unless asked for
    assert all(key in unset or OmegaConf.select(schema, key) is not None for key in LOWEST)


def test_every_choice_composes() -> None:
    for folder in (f for f in files("autoprune.conf").iterdir() if f.is_dir()):
        for choice in (f for f in folder.iterdir() if f.name.endswith(".yaml")):
            name = choice.name.removesuffix(".yaml")
            group = f"+{folder.name}" if folder.name == "experiment" else folder.name
            listed = f"[{name}]" if folder.name in ("space", "evaluator") else name
            content = yaml.safe_load(choice.read_text())
            if folder.name == "cluster":  # of submit, not of a run
                assert OmegaConf.to_container(compose_group("cluster", [f"cluster={name}"])) == content
                continue
            cfg = compose(["model=x", f"{group}={listed}"])
            if folder.name != "experiment":
                found = cfg[folder.name][name] if listed.startswith("[") else cfg[folder.name]
                assert OmegaConf.to_container(found) == content, f"{folder.name}/{name}: wrong @package?"


def targets() -> list[tuple[str, dict[str, Any]]]:
    """Every YAML file that names a class, as (file, content)."""
    found = [p for p in Path(str(files("autoprune.conf"))).rglob("*.yaml") if "_target_" in p.read_text()]
    return [(f"{p.parent.name}/{p.stem}", yaml.safe_load(p.read_text())) for p in sorted(found)]


@pytest.mark.parametrize(("name", "content"), targets())
def test_every_choice_holds_settings_of_its_class_at_their_defaults(
    name: str, content: dict[str, Any]
) -> None:
    check_targets(content)
    parameters = inspect.signature(get_object(content.pop("_target_"))).parameters
    for key, value in content.items():
        assert key in parameters, f"{name}: {key} is no setting of the class"
        default = parameters[key].default
        assert value == (list(default) if isinstance(default, tuple) else default), f"{name}: {key}={value}"
