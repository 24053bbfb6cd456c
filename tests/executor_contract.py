"""The suite that every executor must pass."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.evaluation import Evaluation, Failure, Scores
from autoprune.executors.base import Opened
from autoprune.objective import Fidelity, Proposal, Result, Split, Status
from autoprune.space import Candidate, Plan
from autoprune.study import Job


class ExecutorContract:
    """What a study relies on: each job answered once, with the very numbers of a plain evaluation, failures apart.

    A subclass has the fixtures `executor`, opened on the evaluation that the fixture `evaluation` gives, and `plans`:
    plans that can be evaluated, then one that gives NaN, then one that raises.
    """

    FIDELITIES = (Fidelity(Split.FITNESS, (0, 3)), Fidelity(Split.FITNESS, (2, 13)))

    @staticmethod
    def jobs(plans: Sequence[Plan], fidelity: Fidelity, first: int = 0) -> list[Job]:
        """One job a plan."""
        return [Job(Proposal(first + i, Candidate((i,)), fidelity), plan) for i, plan in enumerate(plans)]

    @staticmethod
    def same(result: Result, expected: Scores | Failure) -> bool:
        """To the last bit."""
        if isinstance(expected, Failure):
            return (result.status, result.reason) == (Status.FAILED, expected.reason) and not result.metrics
        ours = {name: values.tobytes() for name, values in result.per_window.items()}
        return result.ok and (dict(result.metrics), ours) == (
            dict(expected.metrics),
            {name: values.tobytes() for name, values in expected.per_window.items()},
        )

    def test_every_job_is_answered_once_with_the_bits_of_a_plain_evaluation(
        self, executor: Opened, evaluation: Evaluation, plans: list[Plan]
    ) -> None:
        batch = [job for i, f in enumerate(self.FIDELITIES) for job in self.jobs(plans, f, 100 * i)]
        executor.submit(batch[:3])
        executor.submit(batch[3:])
        found = {r.proposal.id: r for r in executor.results()}
        assert sorted(found) == [job.proposal.id for job in batch]
        for i, fidelity in enumerate(self.FIDELITIES):
            for number, outcome in enumerate(evaluation.evaluate(plans, fidelity)):
                result = found[100 * i + number]
                assert self.same(result, outcome), (result, outcome)
                assert result.proposal == self.jobs(plans, fidelity, 100 * i)[number].proposal

    def test_plans_that_fail_are_rows_and_disturb_nobody(self, executor: Opened, plans: list[Plan]) -> None:
        executor.submit(self.jobs(plans, self.FIDELITIES[0]))
        found = sorted(executor.results(), key=lambda r: r.proposal.id)
        assert [r.ok for r in found] == [True] * (len(plans) - 2) + [False, False]
        assert "is not finite" in found[-2].reason and "SpaceError" in found[-1].reason

    def test_nothing_submitted_nothing_answered(self, executor: Opened) -> None:
        executor.submit([])
        assert list(executor.results()) == []

    def test_what_is_submitted_while_results_are_read_is_answered_once(
        self, executor: Opened, plans: list[Plan]
    ) -> None:
        executor.submit(self.jobs(plans[:2], self.FIDELITIES[0]))
        reading = iter(executor.results())
        found = [next(reading)]
        executor.submit(self.jobs(plans[2:4], self.FIDELITIES[1], 100))
        found += [*reading, *executor.results()]
        assert sorted(r.proposal.id for r in found) == [0, 1, 100, 101] and all(r.ok for r in found)

    def test_counters_start_again_after_every_call(self, executor: Opened, plans: list[Plan]) -> None:
        executor.counters()
        counted = []
        for _ in range(2):
            executor.submit(self.jobs(plans[:-2], self.FIDELITIES[0]))
            assert len(list(executor.results())) == len(plans) - 2
            counted.append(executor.counters())
        assert counted[0]["block_runs"] == counted[1]["block_runs"] > 0
        assert counted[0]["block_runs"] < counted[0]["block_runs_naive"]
        assert all(c["thread_seconds"] > 0 for c in counted)
        assert not any(executor.counters().values())
