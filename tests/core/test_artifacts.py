"""Pruning the cache: the longest unused first, and never what a living process uses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprune import artifacts as keeper
from autoprune.artifacts import artifacts, older, over, parse_age, parse_size, prune
from autoprune.cache import Cache
from autoprune.cli import main
from autoprune.errors import SettingError

DAY = 86400
USE = """
import sys
from pathlib import Path
from autoprune.cache import Cache
def build(folder):
    raise SystemExit("built again")
folder = Cache(Path(sys.argv[1])).folder("teacher", int(sys.argv[2]), build)
print(folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., list[Path]]:
    """Artifacts of 1000 bytes: number i was last used i days ago, by processes that have ended."""

    def make(count: int, kind: str = "teacher", source: str = "") -> list[Path]:
        made = []
        for number in range(count):
            cache = Cache(tmp_path, source)
            folder = cache.folder(kind, number, lambda to: (to / "data").write_bytes(bytes(1000)) and None)
            moment = time.time() - number * DAY - 60
            os.utime(folder, (moment, moment))
            made.append(folder)
        for handle in keeper._leases.values():
            os.close(handle)
        keeper._leases.clear()
        return made

    return make


def test_the_longest_unused_goes_first(fill: Callable[..., list[Path]], tmp_path: Path) -> None:
    made = fill(5)
    gone, used = prune(tmp_path, over(3000))
    assert [a.folder for a in gone] == [made[4], made[3]] and not used
    assert [f.is_dir() for f in made] == [True, True, True, False, False]
    assert not list(tmp_path.glob("*/.removed*"))


def test_looking_an_artifact_up_makes_it_new_again(fill: Callable[..., list[Path]], tmp_path: Path) -> None:
    made = fill(3)
    Cache(tmp_path).folder("teacher", 2, lambda to: None)
    assert [a.folder for a in artifacts(tmp_path)] == [made[1], made[0], made[2]]


def test_age(fill: Callable[..., list[Path]], tmp_path: Path) -> None:
    made = fill(4)
    gone, _ = prune(tmp_path, older(1.5 * DAY), dry=True)
    assert {a.folder for a in gone} == {made[2], made[3]} and all(f.is_dir() for f in made)
    prune(tmp_path, older(1.5 * DAY))
    assert [f.is_dir() for f in made] == [True, True, False, False]


def user(root: Path, number: int) -> subprocess.Popen[str]:
    """A process that has looked an artifact up and lives."""
    command = [sys.executable, "-c", USE, str(root), str(number)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None and process.stdout.readline().strip()
    return process  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_what_a_living_process_uses_stays(
    fill: Callable[..., list[Path]], tmp_path: Path, ending: str
) -> None:
    made = fill(3)
    process = user(tmp_path, 2)
    gone, used = prune(tmp_path, over(0))
    assert [a.folder for a in used] == [made[2]] and {a.folder for a in gone} == {made[0], made[1]}
    process.kill() if ending == "killed" else process.communicate("")
    process.wait(20)
    gone, used = prune(tmp_path, over(0))
    assert [a.folder for a in gone] == [made[2]] and not used
    assert not list((tmp_path / ".live").iterdir()), "what dead processes left is forgotten"


def test_this_process_uses_what_it_built(tmp_path: Path) -> None:
    folder = Cache(tmp_path).folder("teacher", 1, lambda to: None)
    assert prune(tmp_path, over(-1)) == ([], artifacts(tmp_path)) and folder.is_dir()


def test_teachers_are_held_within_their_bound(
    fill: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ladders = fill(6), fill(6, "ladders")
    monkeypatch.setenv("AUTOPRUNE_TEACHER_CACHE", "3kB")
    keeper._grown.clear()
    new = Cache(tmp_path).folder("teacher", "new", lambda to: (to / "data").write_bytes(bytes(1000)) and None)
    assert [f.is_dir() for f in made] == [True, True, False, False, False, False]
    assert new.is_dir() and all(f.is_dir() for f in ladders), "only teachers are bounded"


def test_pruning_waits_for_a_lookup(
    fill: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding an old artifact and marking it as used nobody removes it."""
    (made,) = fill(1)
    pruning = threading.Thread(target=prune, args=(tmp_path, over(0)))
    mark = os.utime

    def slow(path: Path) -> None:
        pruning.start()
        pruning.join(0.3)
        assert made.is_dir()
        mark(path)

    monkeypatch.setattr(keeper.os, "utime", slow)
    assert Cache(tmp_path).folder("teacher", 0, lambda to: pytest.fail("built again")) == made
    pruning.join(20)
    assert not pruning.is_alive() and made.is_dir()


def test_sizes_and_ages() -> None:
    assert [parse_size(t, "x") for t in ("5GB", "1.5 mb", "0", "12")] == [5_000_000_000, 1_500_000, 0, 12]
    assert [parse_age(t, "x") for t in ("30d", "12h", "2w")] == [30 * DAY, DAY / 2, 14 * DAY]
    with pytest.raises(SettingError, match="--keep=much is not a size; write 5GB"):
        parse_size("much", "--keep")
    with pytest.raises(SettingError, match="--older 30 is not an age; write 30d"):
        parse_age("30", "--older")


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))

    def run(line: str) -> tuple[int, str, str]:
        code = main(["cache", *line.split()])
        return code, *capsys.readouterr()

    return run


def test_the_list_says_what_things_were_made_from(
    fill: Callable[..., list[Path]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    fill(3, source="model=a data=b"), fill(1, "tokens")
    code, out, _ = cli("")
    assert code == 0 and cli("list")[1] == out
    teacher = next(line for line in out.splitlines() if line.startswith("teacher"))
    assert teacher.split() == ["teacher", "model=a", "data=b", "3", "3.05", "kB", "0", "min", "1", "min"]
    assert "not recorded" in out and f"4 artifacts, 4.05 kB in {tmp_path}" in out
    assert len(cli("list --each --kind teacher")[1].splitlines()) == 6
    assert cli("path")[1] == f"{tmp_path}\n"


def test_pruning_by_command(
    fill: Callable[..., list[Path]], cli: Callable[..., tuple[int, str, str]]
) -> None:
    made, tokens = fill(4), fill(2, "tokens")
    assert cli("prune --keep 2kB --kind teacher --dry-run")[1] == "would remove 2 artifacts, 2 kB\n"
    assert all(f.is_dir() for f in made)
    assert cli("prune --keep 2kB --kind teacher")[1] == "removed 2 artifacts, 2 kB\n"
    assert [f.is_dir() for f in made] == [True, True, False, False]
    assert cli("prune --older 12h")[1] == "removed 2 artifacts, 2 kB\n"
    assert [f.is_dir() for f in tokens] == [True, False]
    assert cli("prune")[1] == "removed 0 artifacts, 0 B\n", "teachers are within their bound"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("prnue", "cache: unknown action 'prnue'; did you mean 'prune'?"),
        ("list --keep 1GB", "cache list takes no --keep"),
        ("path --kind teacher", "cache path takes no --kind"),
        ("prune --each", "cache prune takes no --each"),
        ("prune --keep lots", "--keep=lots is not a size"),
        ("prune --older x", "--older x is not an age"),
        ("prune --older 3d --kind teachr", "holds no such kind; did you mean 'teacher'?"),
        ("prune --kind ladders", "say what may go: --older 30d, --keep 5GB"),
    ],
)
def test_mistakes(
    fill: Callable[..., list[Path]], cli: Callable[..., tuple[int, str, str]], line: str, says: str
) -> None:
    made = fill(2)
    code, out, err = cli(line)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert all(f.is_dir() for f in made)


def test_a_bound_that_is_no_size_is_named(
    cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPRUNE_TEACHER_CACHE", "big")
    code, _, err = cli("list")
    assert code == 2 and "AUTOPRUNE_TEACHER_CACHE=big is not a size; write 5GB or 500MB" in err


def test_an_empty_cache(cli: Callable[..., tuple[int, str, str]]) -> None:
    assert cli("")[1].endswith("holds no artifacts\n") and cli("prune --older 1d")[0] == 0
