"""The fingerprint tells machines apart and needs no particular system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autoprune.hardware.fingerprint as prints


def test_it_names_the_machine_and_what_timing_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = prints.fingerprint(1)
    assert {"cpu", "cores", "flags", "caches", "torch", "transformers", "python", "threads"} <= set(facts)
    assert facts == prints.fingerprint(1) and json.loads(json.dumps(facts)) == facts
    assert all(isinstance(v, str | int) for v in facts.values())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert prints.fingerprint(1)["OMP_NUM_THREADS"] == "7"
    assert prints.fingerprint(2)["threads"] == 2


def test_it_reads_flags_and_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "model name\t: Abacus 9\nflags\t\t: fpu avx2 amx_bf16\n\nmodel name: no\n"
    )
    for i, facts in enumerate(
        (("1", "Instruction", "64K"), ("3", "Unified", "32M"), ("2", "Unified", "1024K"))
    ):
        (tmp_path / f"index{i}").mkdir()
        for name, text in zip(("level", "type", "size"), facts, strict=True):
            (tmp_path / f"index{i}" / name).write_text(text + "\n")
    monkeypatch.setattr(prints, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(prints, "CACHES", tmp_path)
    facts = prints.fingerprint(1)
    assert (facts["cpu"], facts["flags"]) == ("Abacus 9", "avx2 amx_bf16")
    assert facts["caches"] == "L1Instruction:64K L3Unified:32M L2Unified:1024K"
    assert prints.last_level_cache() == 32 << 20


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_it_works_without_any_system_files_or_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str
) -> None:
    monkeypatch.setattr(prints, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(prints, "CACHES", tmp_path / "none")
    monkeypatch.setattr(prints.platform, "system", lambda: system)
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = prints.fingerprint(1)
    assert facts["cpu"] and facts["caches"] == ""
    assert prints.last_level_cache() is None
    assert "commit" not in prints.environment()


def test_environment_adds_platform_versions_and_our_own_commit_only(tmp_path: Path) -> None:
    facts = prints.environment()
    assert facts["numpy"] and facts["platform"]
    assert set(prints.fingerprint(1)) <= set(facts)
    assert len(str(facts.get("commit", "0" * 40))) == 40
    assert prints._commit(tmp_path) == {}
    assert prints._commit(Path(prints.__file__).parent) == {}  # inside a checkout, but not its root


def test_differing_names_the_first_field() -> None:
    assert prints.differing({"a": 1, "b": "x"}, {"a": 1, "b": "x"}) == ""
    assert prints.differing({"a": 1, "b": "x"}, {"a": 1, "b": "y"}) == "b='x', here 'y'"
    assert prints.differing({}, {"gpu": "H"}) == "gpu='', here 'H'"
