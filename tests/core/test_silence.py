"""What C code writes inside goes nowhere, what is written around it arrives."""

from __future__ import annotations

import ctypes
import sys

import pytest

from autoprune.silence import silent_stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no libc of that name")
def test_only_what_is_written_inside_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    puts = ctypes.CDLL(None).puts
    puts(b"before")
    print("printed before")
    with silent_stdout():
        puts(b"inside")
    print("printed after", flush=True)
    puts(b"after")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out.split("\n")[:-1] == ["before", "printed before", "printed after", "after"]


def test_it_is_restored_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), silent_stdout():
        raise RuntimeError
    print("there", flush=True)
    assert capfd.readouterr().out == "there\n"
