"""`device=`: what may be asked for, what it stands for here, and how a run remembers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from autoprune.cli import main
from autoprune.config import compose
from autoprune.device import check_room, device_of, exact, make_do, of_workers, searched_on, settle
from autoprune.errors import SettingError

CPU = torch.device("cpu")


def settings(*words: str) -> Any:
    return compose(["model=docs-llama", "out=unused", *words])


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """So many GPUs."""

    def there(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000, 2_000_000))

    there(0)
    return there


def test_auto_is_the_gpu_where_there_is_one(gpus: Any) -> None:
    assert device_of(settings()) == CPU
    gpus(2)
    assert device_of(settings()) == torch.device("cuda")
    assert device_of(settings("device=cpu")) == CPU
    assert device_of(settings("device=cuda:1")) == torch.device("cuda:1")


def test_workers_without_gpus_keep_the_run_on_the_cpu(gpus: Any) -> None:
    gpus(1)
    assert device_of(settings("executor=ray")) == CPU
    assert of_workers(settings("executor=ray"), "cpu") == "cpu"
    assert device_of(settings("executor=ray", "executor.gpus=0.5")) == torch.device("cuda")


def test_workers_with_gpus_use_them_whatever_the_run_has(gpus: Any) -> None:
    cfg = settings("executor=ray", "executor.gpus=0.5")
    assert device_of(cfg) == CPU
    assert of_workers(cfg, "cpu") == "cuda"
    assert searched_on(cfg, CPU) == "GPUs of the workers (executor.gpus=0.5)"


def test_the_ledger_says_which_gpu(gpus: Any) -> None:
    gpus(1)
    assert searched_on(settings(), CPU) == "cpu"
    assert searched_on(settings(), torch.device("cuda")) == "cuda:0 (Some GPU)"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["device=foo"], "device=foo is unknown; allowed: auto, cpu, cuda, cuda:N"),
        (["device=cuda:x"], "device=cuda:x is unknown; did you mean 'cuda:N'?"),
        (
            ["device=cpu", "executor=ray", "executor.gpus=1"],
            "device=cpu leaves the GPUs of executor.gpus=1 idle",
        ),
        (["device=cuda", "executor=ray"], "device=cuda: the executor's workers have no GPU"),
        (
            ["device=cuda", "executor=tune", "recovery=distill"],
            "device=cuda: the executor's workers have no GPU",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(words: list[str], line: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings(*words)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "named", "line"),
    [
        (0, "cuda", r"device=cuda is not on \S+, which has cpu$"),
        (1, "cuda:7", r"device=cuda:7 is not on \S+, which has cpu, cuda:0 \(Some GPU\)$"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_what_there_is(
    gpus: Any, count: int, named: str, line: str
) -> None:
    gpus(count)
    with pytest.raises(SettingError, match=line):
        device_of(settings(f"device={named}"))


def test_the_command_line_ends_with_2(gpus: Any, tmp_path: Any, capsys: Any) -> None:
    assert main(["model=docs-llama", "device=cuda", f"out={tmp_path / 'run'}"]) == 2
    assert "device=cuda is not on" in capsys.readouterr().err


def test_a_run_stays_on_the_cpu_it_began_on(gpus: Any) -> None:
    gpus(1)
    cfg = settings()
    settle(cfg, "cuda:0 (Some GPU)")
    assert device_of(cfg) == torch.device("cuda")
    settle(cfg, "cpu")
    assert device_of(cfg) == CPU


def test_a_run_from_before_there_was_a_choice_is_one_of_the_cpu(gpus: Any) -> None:
    gpus(1)
    cfg = settings("executor=ray", "executor.gpus=1")
    OmegaConf.set_struct(cfg, False)
    del cfg["device"]
    assert device_of(cfg) == CPU and of_workers(cfg, "cpu") == "cpu"


def test_a_finished_run_of_a_gpu_is_looked_at_without_one(gpus: Any) -> None:
    cfg = settings("device=cuda:3")
    make_do(cfg)
    assert device_of(cfg) == CPU


def test_what_does_not_fit_says_what_would_help(gpus: Any) -> None:
    check_room(CPU, 1 << 60, "the model")
    check_room(torch.device("cuda"), 999_999, "the model")
    with pytest.raises(
        SettingError, match="device=cuda has 1 MB left, and the model takes 5 MB; stream=host"
    ):
        check_room(torch.device("cuda"), 5_000_000, "the model")


def test_a_gpu_computes_in_fp32_without_shortcuts() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        exact(CPU)
        assert torch.get_float32_matmul_precision() == "high"
        exact(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
