"""The settings of a run: types, defaults and bounds; and how `key=value` become a configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from autoprune.device import check_device
from autoprune.errors import SettingError, nearest
from autoprune.precision import WORDS

GROUPS = "autoprune.conf"
BASELINES = ("uniform", "owl", "magnitude", "nirvana", "stun")  # what `NAME@RATIO` may name


@dataclass
class Calibration:
    """How ladders are built: from which text, ranked by what, refit against which plan."""

    tokens: int | None = None  # null: 65,536, or what the calibration split has
    seed: int = 0  # which windows of the split
    ladder: str = "refit"
    criterion: str = "obs"
    mask: str = "sparsegpt"  # how matrices are masked, where the space has masks
    expert_criterion: str | None = None  # of experts; null: activation
    damping: float = 1e-3  # added to the diagonal of the moments, as a share of its mean
    relative: bool = False  # refit: each token's error counts relative to the length of its hidden states
    bias: bool = False  # nested: what dropped units gave on average goes into the output's bias
    reference: str = "dense"  # or uniform@r or another baseline, or a file that holds a plan
    # shares of the tokens: after each the ladders are refit behind the plan found so far
    rounds: list[float] = field(default_factory=lambda: [1.0])
    follow: int | None = (
        None  # from this round on, counted from 1, they aim at the dense model's hidden states
    )


@dataclass
class Export:
    """How a chosen plan becomes a checkpoint; `refit`: its output projections are solved once more, for it alone.

    `int8`: the linear maps inside blocks are stored in int8, and latencies are measured so.
    """

    refit: bool = False
    int8: bool = False


@dataclass
class Latency:
    """How prefill and decode are timed; `file` is a saved latency table to use instead of measuring one.

    `foreign` lets it be another machine's: the run then searches for that machine and times nothing itself. `kernels`:
    linear maps run on what is fastest here, dense and pruned; false: on torch's own. `phases`
    is how often a search goes on for a target that its finalists missed when they were measured. `stale` says what
    becomes of a stored table by which the dense model would take a tenth more or less than it does now: `measure` makes
    a new one, `refuse` ends the run, `keep` does not even look. `on` names a resource of the cluster: a node that
    has it measures, table and front, and does nothing else meanwhile.
    """

    mode: str = "measure"
    file: str | None = None
    foreign: bool = False
    batch: int = 1
    prefill_tokens: int = 256
    context: int = 256
    decode_steps: int = 8
    rounds: int = 15
    kernels: bool = True
    phases: int = 2
    stale: str = "measure"
    on: str | None = None


@dataclass
class Config:
    """Every setting of a run. `model`, `data` and `out` are plain text: built-in name, path or hub id."""

    model: str = MISSING
    data: str = "auto"
    out: str = "results/${now:%Y-%m-%d_%H-%M-%S}"
    objectives: list[str] = field(default_factory=lambda: ["kl", "params"])
    constraints: dict[str, Any] = field(default_factory=dict)
    # share of the cost objective at which a method that works at one budget searches, for lack of constraints
    targets: list[float] = field(default_factory=lambda: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    tokens: float = 1e6  # fitness tokens put through a model for candidates
    evaluations: int | None = None
    seconds: float | None = None
    seed: int = 0
    window: int = 256  # tokens in a window
    prompt_len: int | None = (
        None  # of them a prompt, read at once and not scored; null: none, or half with a KV cache
    )
    hidden: str | None = None  # width of the residual stream: a share, as 0.9x, or a number; null: as it is
    sequences: int = (
        8  # windows in a micro-batch: fixed, because the grouping decides the last bits of a score
    )
    threads: int = 1
    precision: str = (
        "fp32"  # or bf16: what sublayers multiply in while searching; selection and test are fp32
    )
    device: str = "auto"  # or cpu, cuda, cuda:N; auto: cuda where there is one, else cpu
    space: dict[str, Any] = MISSING
    search: dict[str, Any] = MISSING
    evaluator: dict[str, Any] = MISSING
    executor: dict[str, Any] = MISSING
    recovery: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    selection_windows: int = 64
    test_windows: int = 64
    finalists: int = 48
    front_points: int = 16
    uniform: list[float] = field(default_factory=lambda: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    # at these ratios: uniform, or an allocator (owl, magnitude, nirvana, stun), which is a seed too
    baselines: list[str] = field(default_factory=lambda: ["uniform"])
    latency: Latency = field(default_factory=Latency)
    export: Export = field(default_factory=Export)
    memory_mb: int = 512  # bound for hidden states kept to be shared, and one for masked matrices
    # disk, or host, beside a GPU: model and ladders stay there, but for the sublayers at work; auto: what fits rests
    stream: str = "off"
    stream_mb: int = 1024  # bound for those
    device_mb: int | None = None  # with stream=auto, weights on the GPU; null: what is free, less memory_mb
    host_mb: int | None = None  # and in the machine's memory
    trust_remote_code: bool = False
    adapter: str | None = None  # PACKAGE.MODULE.CLASS of an adapter, for a model family that is not built in
    quiet: bool = False


LOWEST = {
    "tokens": 1,
    "evaluations": 1,
    "seed": 0,
    "window": 2,
    "prompt_len": 1,
    "sequences": 1,
    "threads": 1,
    "calibration.tokens": 1,
    "calibration.seed": 0,
    "calibration.damping": 0,
    "selection_windows": 1,
    "test_windows": 1,
    "finalists": 1,
    "front_points": 1,
    "latency.batch": 1,
    "latency.prefill_tokens": 1,
    "latency.context": 1,
    "latency.decode_steps": 1,
    "latency.rounds": 1,
    "latency.phases": 0,
    "memory_mb": 1,
    "stream_mb": 1,
    "device_mb": 1,
    "host_mb": 1,
}
MODES = ("measure", "off")
STALE = ("measure", "refuse", "keep")
EVALUATORS = ["divergence", "perplexity", "classification"]  # the usual ones; each run takes those that fit


def register() -> None:
    """Tell Hydra the types, under a name of our own: its store is one for the whole process."""
    from hydra.core.config_store import ConfigStore

    schema = OmegaConf.structured(Config)
    OmegaConf.set_struct(schema.constraints, False)  # its keys are metrics: any cost of the run
    ConfigStore.instance().store(name="autoprune_schema", node=schema, provider="autoprune")


def compose(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration that a list of `key=value` stands for, with `out` absolute and fixed.

    Raises SettingError for whatever a user may have got wrong.
    """
    import hydra

    from autoprune.settings import explain, quote

    register()
    try:
        with hydra.initialize_config_module(GROUPS, version_base="1.3"):
            cfg = hydra.compose("config", [quote(o) for o in overrides])
        validate(cfg)
        cfg.out = str(Path(cfg.out).absolute())
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise SettingError(line) from error
    return cfg


def compose_group(group: str, overrides: Sequence[str]) -> DictConfig:
    """The settings of one group by itself, from `GROUP=NAME` and `GROUP.key=value`.

    Raises SettingError for whatever a user may have got wrong.
    """
    import hydra

    from autoprune.run.typed import check_types
    from autoprune.settings import explain, quote

    if not any(o.startswith(f"{group}=") for o in overrides):
        raise SettingError(f"{group}=NAME is required; `autoprune list {group}` names all")
    added = [f"+{quote(o)}" if o.startswith(f"{group}=") else quote(o) for o in overrides]
    try:
        with hydra.initialize_config_module(GROUPS, version_base="1.3"):
            cfg: DictConfig = hydra.compose(overrides=added)[group]
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise SettingError(line) from error
    check_types(cfg, group)
    return cfg


def validate(cfg: DictConfig) -> None:
    """Raise SettingError when a setting is unknown, missing or out of range."""
    _check_names(cfg, OmegaConf.structured(Config))
    _check_required(cfg)
    for key, low in LOWEST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not low <= value < math.inf:
            raise SettingError(f"{key}={value} is out of range; it must be a finite number of at least {low}")
    if cfg.seconds is not None and not 0 < cfg.seconds < math.inf:
        raise SettingError(f"seconds={cfg.seconds} is out of range; it must be a finite number above 0")
    for ratio in cfg.uniform:
        if not 0 < ratio <= 1:
            raise SettingError(f"uniform holds {ratio}; each ratio must be above 0 and at most 1")
    _check_baselines(list(cfg.baselines))
    if not cfg.targets or len(set(cfg.targets)) < len(cfg.targets) or not all(0 < r < 1 for r in cfg.targets):
        raise SettingError(
            f"targets={list(cfg.targets)}: name at least one ratio between 0 and 1, and each once"
        )
    if cfg.latency.mode not in MODES:
        raise SettingError(f"latency.mode={cfg.latency.mode} is unknown" + nearest(cfg.latency.mode, MODES))
    if cfg.precision not in WORDS:
        raise SettingError(f"precision={cfg.precision} is unknown" + nearest(cfg.precision, WORDS))
    if cfg.latency.stale not in STALE:
        raise SettingError(
            f"latency.stale={cfg.latency.stale} is unknown" + nearest(cfg.latency.stale, STALE)
        )
    _check_rounds(list(cfg.calibration.rounds), cfg.calibration.follow)
    _check_objectives(list(cfg.objectives))
    check_device(cfg)


def _check_names(cfg: DictConfig, schema: DictConfig, prefix: str = "") -> None:
    allowed = [str(key) for key in schema]  # `in schema` would be false for a required one
    for key in map(str, cfg):  # `+key=…` gets past Hydra
        if key not in allowed:
            raise SettingError(f"unknown setting {prefix + key!r}" + nearest(key, allowed))
        if is_dataclass(OmegaConf.get_type(schema, key)):
            _check_names(cfg[key], schema[key], f"{prefix}{key}.")


def _check_required(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise SettingError(f"{missing[0]}=… is required")
    for key in ("model", "data", "out", "space", "evaluator"):
        if not cfg[key]:
            raise SettingError(f"{key}= is empty; it must name something")


def _check_baselines(names: list[str]) -> None:
    for name in names:
        if name not in BASELINES:
            raise SettingError(f"baselines holds {name!r}, which is unknown" + nearest(name, BASELINES))
    if len(set(names)) < len(names):
        raise SettingError(f"baselines={names}: name each once")


def _check_rounds(rounds: list[float], follow: int | None) -> None:
    if not rounds or not all(0 < share < math.inf for share in rounds):
        raise SettingError(
            f"calibration.rounds={rounds}: name at least one share of the tokens, each above 0"
        )
    if follow is not None and len(rounds) == 1:
        raise SettingError(
            f"calibration.follow={follow} needs calibration.rounds of several shares, such as [1,1]"
        )
    if follow is not None and not 2 <= follow <= len(rounds):
        raise SettingError(
            f"calibration.follow={follow} is not between 2 and {len(rounds)}: the first round has no plan yet"
        )


def _check_objectives(objectives: list[str]) -> None:
    if not objectives or len(set(objectives)) < len(objectives):
        raise SettingError(f"objectives={objectives}: name at least one metric, and each once")
