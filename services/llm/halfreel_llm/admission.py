"""Lets a reply in, or refuses it, by its plan against the room there is now.

Knows lengths and the device's figures; nothing of how a reply is written, nor of the queue.
"""

from __future__ import annotations

from halfreel_llm.planning import Lengths, Planner
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.plan import Plan, PlanRefused, Profile, Verdict
from halfreel_runtime.sleeper import Sleeper


class Admission:
    """Plans and admits the replies of one server.

    Args:
        planner: of the model.
        memory: the device's figures.
        profile: where a request names none; a reply never does.
        sleeper: knows what neighbours on the device would give back.
    """

    def __init__(self, planner: Planner, memory: MemoryMonitor, profile: Profile, sleeper: Sleeper) -> None:
        self._planner, self._memory, self._profile, self._sleeper = planner, memory, profile, sleeper

    def plan(self, lengths: Lengths, profile: Profile | None = None) -> tuple[Plan, int]:
        """Plans replies of one size that are written at once; reads a folder, so not in the event loop.

        Returns:
            The plan, and how many such replies could be written at once.
        """
        sleeping_bytes = sum(each.held_bytes for each in self._sleeper.neighbours())
        return self._planner.plan(lengths, profile or self._profile, self._memory.report(), sleeping_bytes)

    @property
    def always(self) -> Verdict | None:
        """What any reply gets, without a plan; None where one is needed.

        On a GPU all that a reply takes is there once the model is awake, so there is nothing to refuse: whoever fills
        the device meanwhile takes nothing from it, and a sleeping model waits for its turn.
        """
        return Verdict.FITS if self._planner.cache_is_warm else None

    def admit(self, lengths: Lengths) -> Verdict:
        """Plans a reply that is about to be queued.

        Raises:
            PlanRefused: It does not fit; with how many tokens would, where fewer do.
        """
        if self.always is not None:
            return self.always
        plan, _ = self.plan(lengths)
        if plan.fits:
            return plan.verdict
        output = self._planner.fitting_output(lengths, plan)
        raise PlanRefused.of(
            plan,
            what=f"a reply of {lengths.output_tokens} tokens after a prompt of {lengths.prompt_tokens}",
            suggestion=f"max_output_token_count {output} would fit" if output else "",
            fields={"suggested_max_output_token_count": str(output)} if output else {},
        )
