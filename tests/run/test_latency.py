"""Where a run's latency table comes from, and what is measured at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autoprune.kernels import native
from autoprune.kernels.dense import DenseLinear
from autoprune.kernels.selector import Selector

from autoprune.cache import Cache
from autoprune.errors import MeasurementError, SettingError
from autoprune.hardware import interruptions, sentinel
from autoprune.hardware.table import LatencyTable
from autoprune.models.llama import LlamaAdapter
from autoprune.progress import Progress
from autoprune.run import latency
from autoprune.run.finals import Entry, Finalist
from autoprune.run.latency import (
    cached_table,
    checked_table,
    copy_table,
    latency_table,
    measure_entries,
    measure_front,
)
from autoprune.run.profile import describe
from autoprune.shape import full_plan
from autoprune.space import Plan
from autoprune.sublayers import join, joint_options
from search_spaces.structured import Structured
from tests import tiny

LATENCY = {
    "batch": 1,
    "prefill_tokens": 6,
    "context": 6,
    "decode_steps": 1,
    "rounds": 5,
    "mode": "measure",
    "file": None,
    "foreign": False,
    "kernels": True,
    "stale": "keep",
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: these tests look at the way times take."""
    monkeypatch.setattr(sentinel, "CONTENDED", float("inf"))
    monkeypatch.setattr(sentinel, "DIRTY", float("inf"))
    monkeypatch.setattr(interruptions, "TOLERATED", float("inf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latency")


@pytest.fixture(scope="module")
def parts(folder: Path) -> Any:
    """As much of a run's parts as measuring takes; settings may be changed by `with_latency`."""
    model = tiny.llama(blocks=1)
    adapter = LlamaAdapter(model)

    def build(plan: Plan, ladders: None = None) -> Any:
        def weights(block: int, sublayer: Any) -> Any:
            count = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
            return adapter.units(sublayer.kind).prefix(adapter.weights(block, sublayer.kind), count)

        return adapter.install(plan, weights, model.dtype)

    return SimpleNamespace(
        cfg=SimpleNamespace(latency=SimpleNamespace(**LATENCY), threads=1),
        cache=Cache(folder / "cache"),
        loaded=SimpleNamespace(digest="digest", dtype=model.dtype),
        device=model.device,
        adapter=adapter,
        ladders=None,
        given=None,
        options=lambda: joint_options([Structured(ffn_options=2)], adapter.shape),
        space=lambda _: join([Structured(ffn_options=2)], adapter.shape, []),
        dense_plan=lambda: full_plan(adapter.shape),
        build=build,
    )


@pytest.fixture(scope="module")
def progress() -> Progress:
    return Progress(quiet=True)


def with_latency(parts: Any, **changes: Any) -> Any:
    settings = SimpleNamespace(**{**LATENCY, **changes})
    return SimpleNamespace(**{**vars(parts), "cfg": SimpleNamespace(latency=settings, threads=1)})


@pytest.fixture
def measured(parts: Any, progress: Progress) -> Path:
    """The cached table's folder."""
    return cached_table(parts, progress)


def test_without_latency_there_is_no_table(parts: Any, progress: Progress, tmp_path: Path) -> None:
    assert latency_table(with_latency(parts, mode="off"), tmp_path / "latency.json", progress) is None


def test_the_table_is_measured_once(
    parts: Any, measured: Path, progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **named: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("autoprune.hardware.measuring.measure_table", never)
    table = latency_table(parts, tmp_path / "latency.json", progress)
    assert table == LatencyTable.load(measured / "latency.json")
    with pytest.raises(AssertionError, match="measured again"):
        cached_table(with_latency(parts, prefill_tokens=7), progress)


def test_the_runs_own_table_comes_first(
    parts: Any, measured: Path, progress: Progress, tmp_path: Path
) -> None:
    other = json.loads((measured / "latency.json").read_text())
    other["base_ms"]["prefill"] = 123.0
    (tmp_path / "latency.json").write_text(json.dumps(other))
    table = latency_table(parts, tmp_path / "latency.json", progress)
    assert table is not None and table.base_ms["prefill"] == 123.0


def edited(file: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Change the saved table, and return the file's name as a setting."""
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return str(file)


def test_a_named_file_is_used(parts: Any, measured: Path, progress: Progress, tmp_path: Path) -> None:
    stored, file = tmp_path / "latency.json", tmp_path / "saved.json"
    with pytest.raises(SettingError, match=f"latency.file={file} does not exist; make it with"):
        latency_table(with_latency(parts, file=str(file)), stored, progress)
    copy_table(measured, file)
    edited(file, lambda data: data["base_ms"].update(prefill=123.0))
    table = latency_table(with_latency(parts, file=str(file)), stored, progress)
    assert table is not None and table.base_ms["prefill"] == 123.0
    assert latency.origin(parts, table) == ""


def test_another_machines_file_is_used_when_asked_for_only(
    parts: Any, measured: Path, progress: Progress, tmp_path: Path
) -> None:
    stored, file = tmp_path / "latency.json", tmp_path / "saved.json"
    copy_table(measured, file)
    named = edited(file, lambda data: data["fingerprint"].update(cpu="Abacus 9"))
    line = r"latency.file=\S+ is of another machine or software: cpu='Abacus 9'.*add latency.foreign=true$"
    with pytest.raises(SettingError, match=line):
        latency_table(with_latency(parts, file=named), stored, progress)
    table = latency_table(with_latency(parts, file=named, foreign=True), stored, progress)
    assert latency.origin(parts, table).startswith(
        "Predicted latencies are those of another machine: Abacus 9, 1 threads (cpu='Abacus 9'"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["shape"].update(blocks=7), r"it is of another model \(blocks=7, here 1\)$"),
        (lambda d: d.update(dtype="float16"), r"it is of another model \(dtype='float16', here 'float32'\)$"),
        (lambda d: d.update(entries=d["entries"][:2]), "not a latency table of this version; make it with"),
        (
            lambda d: d["options"].update(width=[0]) or d.update(entries=d["entries"][:2]),
            "it has no entry for width=48; measured: none$",
        ),
        (
            lambda d: d["workload"].update(batch=4),
            "it was measured with batch=4, the settings say latency.batch=1$",
        ),
        (lambda d: d.update(schema=2), "not a latency table of this version; make it with"),
        (lambda d: d["entries"][0].update(ms={}), "not a latency table of this version; make it with"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    parts: Any, measured: Path, progress: Progress, tmp_path: Path, change: Any, said: str
) -> None:
    file = tmp_path / "saved.json"
    copy_table(measured, file)
    with pytest.raises(SettingError, match=rf"^latency.file={file}: {said}") as refused:
        latency_table(with_latency(parts, file=edited(file, change)), tmp_path / "none", progress)
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)


def test_a_file_that_is_no_table_is_refused(parts: Any, progress: Progress, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    for content in (b"{", b"[]", b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(SettingError, match=f"^latency.file={file}: (not a latency table|is not text)"):
            latency_table(with_latency(parts, file=str(file)), tmp_path / "none", progress)


@pytest.fixture
def changed(
    parts: Any, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A saved table, and a machine on which the dense model takes so many times what it says."""
    file = tmp_path / "saved.json"
    copy_table(measured, file)

    def settings(slower: float, stale: str) -> Any:
        dense = LatencyTable.load(file).dense_ms
        now = SimpleNamespace(prefill_ms=dense["prefill"], decode_ms=slower * dense["decode"])
        monkeypatch.setattr("autoprune.hardware.endtoend.measure_models", lambda *_: {"dense": now})
        return with_latency(parts, file=str(file), stale=stale)

    return settings


def test_a_stored_table_is_looked_at_again(
    changed: Callable[..., Any], progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none, said = tmp_path / "none", list[str]()
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(latency, "measured_table", lambda *_: "a new one")
    for slower, stale in ((1.05, "measure"), (0.95, "refuse"), (2.0, "keep")):
        assert isinstance(latency_table(changed(slower, stale), none, progress), LatencyTable)
    assert not said
    assert latency_table(changed(1.2, "measure"), none, progress) == "a new one"
    line = "the stored latency table is stale: decode of the dense model changed by"
    assert said == [f"{line} +20%; measuring a new one"]
    with pytest.raises(
        SettingError, match=rf"^{line} -50%; allowed is 10%, latency.stale=measure"
    ) as refused:
        latency_table(changed(0.5, "refuse"), none, progress)
    assert refused.value.exit_code == 2


def test_a_dear_or_busy_look_is_left_out(
    changed: Callable[..., Any], progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> Any:
        raise MeasurementError("busy")

    given, said = changed(2.0, "refuse"), list[str]()
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr("autoprune.run.staleness.CHEAP", 0.0)
    assert latency_table(given, tmp_path / "none", progress) is not None and not said
    monkeypatch.setattr("autoprune.run.staleness.CHEAP", 10.0)
    monkeypatch.setattr("autoprune.hardware.endtoend.measure_models", busy)
    assert latency_table(given, tmp_path / "none", progress) is not None
    assert said == ["the stored latency table was not checked: the machine is busy"]


def test_a_stale_table_of_the_cache_is_replaced(
    parts: Any, measured: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (measured / "latency.json").read_text()
    table = LatencyTable.from_json(before)
    monkeypatch.setattr(latency, "_fresh", lambda parts, table, again, progress: again())
    monkeypatch.setattr(latency, "measured_table", lambda *_: replace(table, rounds=99))
    assert checked_table(parts, progress).rounds == 99
    assert LatencyTable.load(measured / "latency.json").rounds == 99
    (measured / "latency.json").write_text(before)


def test_what_a_table_does_not_know_cannot_be_profiled(parts: Any, progress: Progress) -> None:
    strange = SimpleNamespace(**{**vars(parts), "options": lambda: {"kv_groups": (2,), "hidden": (8,)}})
    with pytest.raises(SettingError, match="the latency table does not know hidden; leave it out"):
        cached_table(strange, progress)  # type: ignore[arg-type]


def test_a_busy_machine_gives_no_table(
    parts: Any, progress: Progress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interruptions, "TOLERATED", 0.0)
    monkeypatch.setattr(interruptions, "RETRIES", 0)
    monkeypatch.setattr(interruptions, "counter", lambda *_: iter(range(10**6)).__next__)
    fresh = SimpleNamespace(**{**vars(parts), "cache": Cache(tmp_path)})
    with pytest.raises(MeasurementError, match="other programs interrupted") as refused:
        cached_table(fresh, progress)
    assert refused.value.exit_code == 3
    assert not list(tmp_path.rglob("latency.json"))


def test_a_copy_that_cannot_be_written_is_told(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="--to .* cannot be written"):
        copy_table(measured, tmp_path / "file" / "table.json")


def test_a_wrong_setting_is_named_as_the_user_wrote_it(parts: Any) -> None:
    with pytest.raises(SettingError, match="^latency.rounds=4 must be at least 5$"):
        latency.workload(with_latency(parts, rounds=4))


def test_entries_are_measured_against_dense(parts: Any, progress: Progress) -> None:
    plans = {"dense": Plan.of([(2, 48)]), "front": Plan.of([(0, 0)])}
    entries = [Entry(name, Finalist(plan, {})) for name, plan in plans.items()]
    found = measure_entries(parts, entries, progress)
    dense, nothing = (found[plan.key] for plan in plans.values())
    assert dense.prefill_ratio == dense.decode_ratio == 1.0
    assert nothing.prefill_ratio is not None and nothing.prefill_ms > 0


def test_both_dense_baselines_are_shown(
    parts: Any, progress: Progress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if native.missing():
        pytest.skip(native.missing())
    monkeypatch.setattr("autoprune.kernels.selector.SMALLEST", 1)
    monkeypatch.setattr(Selector, "_timed", lambda self, layer, tokens: 2.0)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    dense = Plan.of([(2, 48)])
    model = latency.as_exported(parts, dense)
    assert any(isinstance(m, DenseLinear) for m in model.modules()) and latency.changed(model)
    assert not latency.changed(latency.as_exported(with_latency(parts, kernels=False), dense))
    entries, told = [Entry("dense", Finalist(dense, {}))], []
    ledger = SimpleNamespace(event=lambda kind, text: told.append(text))
    assert set(measure_front(parts, ledger, entries, progress)) == {dense.key}  # type: ignore[arg-type]
    assert len(told) == 1 and "Dense as transformers runs it: prefill" in told[0] and "decode" in told[0]
    told.clear()
    measure_front(with_latency(parts, kernels=False), ledger, entries, progress)  # type: ignore[arg-type]
    assert not told


def test_the_table_as_text(measured: Path) -> None:
    lines = describe(LatencyTable.load(measured / "latency.json")).splitlines()
    assert [line.split()[0] for line in lines] == [
        "part",
        "everything",
        *["attention"] * 2,
        "ffn",
        *["dense,"] * 2,
        "batch",
        "decode:",
        "prefill:",
    ]
    assert "held-out plans off by" in lines[-1]
    assert not any("CUDA graphs" in line for line in lines)
