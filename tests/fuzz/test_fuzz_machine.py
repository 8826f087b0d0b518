"""The same lives, chosen by hypothesis, so that a failure is shrunk to the few acts that matter."""

from __future__ import annotations

from fuzz_driver import FuzzRig
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule


class SchedulerMachine(RuleBasedStateMachine):
    """Acts on a random engine; the choices inside an act come from the engine's seed."""

    def __init__(self) -> None:
        super().__init__()
        self.rig: FuzzRig | None = None

    @initialize(seed=st.integers(0, 100_000))
    def build(self, seed: int) -> None:
        self.rig = FuzzRig(seed)

    @rule(count=st.integers(1, 3))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.rig.act_submit()

    @rule(count=st.integers(1, 3))
    def plan(self, count: int) -> None:
        for _ in range(count):
            self.rig.act_plan()

    @precondition(lambda self: self.rig is not None and self.rig.in_flight)
    @rule()
    def apply(self) -> None:
        self.rig.act_apply()

    @rule(turns=st.integers(1, 40))
    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.rig.act_plan()
            self.rig.act_apply()

    @rule()
    def cancel(self) -> None:
        self.rig.act_cancel()

    @rule()
    def finish(self) -> None:
        self.rig.act_finish()

    @rule()
    def wait(self) -> None:
        self.rig.act_wait()

    @invariant()
    def books_balance(self) -> None:
        if self.rig is not None:
            self.rig.scheduler.check_integrity()

    def teardown(self) -> None:
        if self.rig is not None:
            self.rig.finish_life()


SchedulerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = SchedulerMachine.TestCase
