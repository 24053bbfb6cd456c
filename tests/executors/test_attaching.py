"""Attaching to a Ray that is not there, or does not let us in: one line within seconds, and nothing is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from autoprune.errors import SettingError
from autoprune.executors.attaching import check_address
from tests.ray_head import head, head_port

TOKEN, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4


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


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray that asks for a token; a session of its own, so that all of it can be ended."""
    port = head_port()
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with tempfile.TemporaryDirectory(prefix="ap-", dir="/tmp") as folder, head(Path(folder), port, access):
        yield f"127.0.0.1:{port}"


@pytest.mark.ray
@pytest.mark.alone
def test_a_wrong_token_is_told_at_once(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", OTHER)
    started = time.monotonic()
    with pytest.raises(
        SettingError, match="it asks for a token: set RAY_AUTH_MODE=token and give its head's"
    ):
        check_address(guarded)
    assert time.monotonic() - started < 39, "Ray itself would go on asking"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    check_address(guarded)


@pytest.mark.ray
@pytest.mark.alone
def test_on_the_command_line_it_is_one_line_and_exit_code_two(guarded: str, tmp_path: Path) -> None:
    from autoprune.bench.small import make

    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    words = [*make(tmp_path), "executor=ray", "executor.workers=1", f"executor.address={guarded}"]
    done = subprocess.run(
        [sys.executable, "-m", "autoprune", *words, f"out={tmp_path / 'run'}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "it asks for a token" in done.stderr, done.stderr
