"""Attaching to a Ray that is not there, or does not let us in: one line within seconds, and nothing is left."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from autoprune.errors import SettingError
from autoprune.executors.attaching import check_address
from autoprune.executors.submission.local import STATE, TOKEN


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "executor.address=nonsense is no address; write auto or HOST:PORT"),
        ("head:port", "is no address"),
        (
            "127.0.0.1:1",
            "no Ray answers at 127.0.0.1:1 (Connection refused); start one with `ray start --head`",
        ),
        ("no.such.host.invalid:6379", "no Ray answers at no.such.host.invalid:6379"),
        ("ray://head:10001", "is Ray's remote client, which is not supported"),
    ],
)
def test_an_address_where_nobody_is(address: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_address(address)
    assert words in str(caught.value)


def test_auto_is_what_ray_takes_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SettingError, match="executor.address=auto: no Ray answers at 127.0.0.1:1"):
        check_address("auto")


def test_a_service_that_is_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.executors import attaching

    monkeypatch.setattr(attaching, "ATTEMPT", 3.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(SettingError, match="no Ray answers there"):
            check_address(address)


@pytest.fixture
def port(guarded: Path) -> str:
    """The address of a Ray that asks for a token."""
    head = json.loads((guarded / STATE).read_text())["pid"]
    words = Path(f"/proc/{head}/cmdline").read_text().split("\0")
    return "127.0.0.1:" + next(w.partition("=")[2] for w in words if w.startswith("--port="))


@pytest.mark.ray
@pytest.mark.alone
def test_a_wrong_token_is_told_at_once(guarded: Path, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "fedcba9876543210" * 4)
    started = time.monotonic()
    with pytest.raises(
        SettingError, match="it asks for a token: set RAY_AUTH_MODE=token and give its head's"
    ):
        check_address(port)
    assert time.monotonic() - started < 39, "Ray itself would go on asking"
    monkeypatch.setenv("RAY_AUTH_TOKEN", (guarded / TOKEN).read_text())
    check_address(port)


@pytest.mark.ray
@pytest.mark.alone
def test_on_the_command_line_it_is_one_line_and_exit_code_two(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from autoprune.bench.small import make
    from autoprune.cli import main

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    words = [*make(tmp_path), "executor=ray", "executor.workers=1", f"executor.address={port}"]
    capfd.readouterr()
    assert main([*words, f"out={tmp_path / 'run'}"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "it asks for a token" in said, said
