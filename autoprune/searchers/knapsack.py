"""One option a gene, least sum of values within additive cost bounds, solved exactly.

One bound: dynamic programming over the genes, keeping of each cost the least value and no pair that another beats in
both. Costs that are whole multiples of a unit, as parameter counts are, are counted in it, others rounded up to 1e-12
of the dense cost. Exact while at most `STATES` pairs are alive (340 for parameter counts of 12 blocks); beyond that
the pairs are thinned to the best of every 1/`STATES` of the bound, so that the bound still holds and what is found is
no worse than the optimum of a bound smaller by genes/`STATES`. Several bounds: mixed-integer programming (HiGHS through
scipy) to a gap of zero.

Values may be negative, and infinite for options that must not be taken. `allowed` restricts each gene to some of its
options, as a trust region does. A sum within a constraint's own relative slack of 1e-9 counts as within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.objective import Array, Constraint
from autoprune.silence import silent_stdout
from autoprune.space import CostTable

STATES = 1 << 15
FINE = 1e-12  # share of the dense cost that costs without a unit are rounded up to: far within the slack
SLACK = 1e-9  # of a constraint

Ints = NDArray[np.int64]
Allowed = Sequence[Sequence[int]]
Choice = tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    """States after some genes: cost and least value, and how each was reached; costs rise and values do not."""

    costs: Ints
    values: Array
    options: NDArray[np.int16]
    parents: NDArray[np.int32]


class Knapsack:
    """One dynamic program that answers every bound up to `largest`: a front for the price of one solution.

    A larger bound is answered as `largest` is.
    """

    def __init__(
        self, values: Sequence[Array], table: CostTable, largest: float, allowed: Allowed | None = None
    ) -> None:
        options = usable(values, allowed)
        self._table = table
        self._unit, whole = _unit(table)
        rows = [np.array(row) for row in table.entries]
        least = [rows[g][o].min() if len(o) else math.inf for g, o in enumerate(options)]
        self._least = table.base + sum(least)
        self._layers: list[_Layer] = []
        capacity = self._units(largest)
        if capacity < 0:
            return
        layer = _Layer(*(np.zeros(1, kind) for kind in (np.int64, float, np.int16, np.int32)))
        for gene, taken in enumerate(options):
            costs = (np.rint if whole else np.ceil)((rows[gene][taken] - least[gene]) / self._unit)
            layer = _extend(
                layer, taken, np.asarray(values[gene], float)[taken], costs.astype(np.int64), capacity
            )
            self._layers.append(layer)

    def best(self, bound: float) -> Choice | None:
        """The options of least value within the bound, one a gene; None when nothing fits."""
        units = self._units(bound)
        if units < 0 or not self._layers:
            return None
        last = self._layers[-1]
        state = int(np.searchsorted(last.costs, units, side="right")) - 1
        found = []
        for layer in reversed(self._layers):
            found.append(int(layer.options[state]))
            state = int(layer.parents[state])
        return tuple(reversed(found))

    def _units(self, bound: float) -> int:
        """How many units above the cheapest choice fit; negative when not even that one does."""
        bound = min(bound, self._table.dense)
        over = bound + SLACK * max(1.0, abs(bound)) - self._least
        return -1 if over < 0 else math.floor(over / self._unit)


def minimise(
    values: Sequence[Array], table: CostTable, constraint: Constraint, allowed: Allowed | None = None
) -> Choice | None:
    """The options of least value within one bound, one a gene; None when nothing fits."""
    return Knapsack(values, table, constraint.bound, allowed).best(constraint.bound)


def minimise_jointly(
    values: Sequence[Array],
    tables: Sequence[CostTable],
    constraints: Sequence[Constraint],
    allowed: Allowed | None = None,
) -> Choice | None:
    """The options of least value within several bounds, each with its own table; None when nothing fits."""
    options = usable(values, allowed)
    if not all(len(o) for o in options):
        return None
    tightened = [0.0] * len(constraints)
    for _ in range(4):  # HiGHS may overstep a bound by its tolerance of 1e-6: then again, closer by as much
        found = _milp(values, tables, constraints, options, tightened)
        if found is None:
            return None
        pairs = zip(constraints, tables, strict=True)
        over = [c.violation({c.metric: table.total(found)}) for c, table in pairs]
        if not any(over):
            return found
        tightened = [t + 2 * o for t, o in zip(tightened, over, strict=True)]
    return None


def usable(values: Sequence[Array], allowed: Allowed | None = None) -> list[Ints]:
    """The options of each gene that are allowed and have a finite value, in rising order."""
    found = []
    for gene, row in enumerate(values):
        among = range(len(row)) if allowed is None else sorted(set(allowed[gene]))
        found.append(np.array([o for o in among if math.isfinite(row[o])], dtype=np.int64))
    return found


def _unit(table: CostTable) -> tuple[float, bool]:
    """The unit that costs are counted in, and whether all differences within a gene are whole multiples of it."""
    steps = [value - row[0] for row in table.entries for value in row]
    if all(float(s).is_integer() for s in steps):
        return float(math.gcd(*(int(s) for s in steps)) or 1), True
    return max(abs(table.dense - table.base), 1e-300) * FINE, False


def non_beaten(costs: NDArray[Any], values: Array, most: float) -> Ints:
    """Indices of the pairs within `most` that no other beats in both, in order of rising cost and falling value."""
    fits = np.flatnonzero(costs <= most)
    order = fits[np.lexsort((values[fits], costs[fits]))]
    ordered = values[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(ordered)[:-1]))
    return np.asarray(order[ordered < before])


def _extend(layer: _Layer, options: Ints, values: Array, costs: Ints, capacity: int) -> _Layer:
    """States are the pairs of cost and value that no other pair beats in both."""
    cost = (layer.costs[None, :] + costs[:, None]).ravel()
    value = (layer.values[None, :] + values[:, None]).ravel()
    kept = non_beaten(cost, value, capacity)
    if len(kept) > STATES:  # values fall along the front: the last of a bucket is its best
        buckets = cost[kept] * STATES // (capacity + 1)
        kept = kept[np.append(np.flatnonzero(np.diff(buckets)), len(kept) - 1)]
    option, parent = np.divmod(kept, len(layer.costs))
    return _Layer(cost[kept], value[kept], options[option].astype(np.int16), parent.astype(np.int32))


def _milp(
    values: Sequence[Array],
    tables: Sequence[CostTable],
    constraints: Sequence[Constraint],
    options: Sequence[Ints],
    tightened: Sequence[float],
) -> Choice | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    starts = np.concatenate(([0], np.cumsum([len(o) for o in options])))
    owner = np.repeat(np.arange(len(options)), np.diff(starts))
    one = csr_array((np.ones(starts[-1]), (owner, np.arange(starts[-1]))))
    limits = [LinearConstraint(one, 1, 1)]
    for table, constraint, less in zip(tables, constraints, tightened, strict=True):
        row = np.concatenate([np.array(table.entries[g])[o] for g, o in enumerate(options)])
        unit = max(abs(table.dense - table.base), 1e-300) / 1e6  # the tolerance is an absolute 1e-6
        room = constraint.bound + SLACK / 2 * max(1.0, abs(constraint.bound)) - table.base - less
        limits.append(LinearConstraint(row[None, :] / unit, -np.inf, room / unit))
    objective = np.concatenate([np.asarray(v, float)[o] for v, o in zip(values, options, strict=True)])
    with silent_stdout():  # HiGHS tells of its steps now and then, whatever it is asked
        done = milp(
            objective,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=limits,
            options={"mip_rel_gap": 0.0},
        )
    if done.x is None:
        return None
    picked = [int(np.argmax(done.x[a:b])) for a, b in zip(starts, starts[1:], strict=False)]
    return tuple(int(o[p]) for o, p in zip(options, picked, strict=True))
