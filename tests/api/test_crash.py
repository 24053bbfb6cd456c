"""Runs killed with SIGKILL at random moments, driver or worker, end like one that nobody disturbed."""

from __future__ import annotations

import random
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from autoprune.bench import crash

pytestmark = pytest.mark.alone


def test_killed_six_times_and_resumed_the_ledger_is_the_same(tmp_path: Path, no_export: None) -> None:
    seed = random.SystemRandom().randrange(10_000)
    ray = 4 if find_spec("ray") else 0
    outcomes = crash.torture(tmp_path, 6, ray, 4, seed)
    told = f"seed {seed}\n{crash.table(outcomes)}"
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    assert len(kills) == 6 and all(outcome.same for outcome in outcomes), told
    assert not any(outcome.left for outcome in outcomes), told
    on_ray = [victim for o in outcomes if o.executor == "ray" for victim, _ in o.kills]
    assert len(on_ray) == ray, told


def test_a_different_end_is_seen(tmp_path: Path) -> None:
    same = crash.Outcome("serial", (("driver", "searching"),), True, False)
    other = crash.Outcome("serial", (("driver", "writing"),), False, True)
    said = crash.table([same, other])
    assert "| serial | driver | 2 | 0 | 1 | 0 | 1 |" in said
    assert "ended differently: 1." in said and "for more than 120 s: 1." in said


def test_kills_fall_on_the_whole_of_a_run() -> None:
    draw, found = random.Random(0), Counter[int]()
    for _ in range(300):
        at = 0.0
        for left in range(10, 0, -1):
            at = crash.due(draw, at, 1.0, left)
            found[int(5 * at)] += 1
    assert found.total() == 3000 and all(500 < found[part] < 700 for part in range(5)), found


def test_a_run_that_came_further_than_meant_is_killed_in_what_remains() -> None:
    draw, pace = random.Random(1), crash.Pace(before=1, each=0.1, after=1, searched=90, records=100)
    assert (pace.share(0), pace.share(100)) == (0, 1 - crash.AFTER)
    moments = [crash.due(draw, pace.share(50), 1.0, 5) for _ in range(100)]
    assert min(moments) > pace.share(50) and len(set(moments)) == 100
