"""The memory that replies will take, before they are written.

Weights, slots, graphs and workspaces are there once the model is warm, and are measured then; what a step needs on top
follows from the network's sizes. Knows no request but its lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm.network import Shape
from halfreel_runtime.memory_limit import CONTEXT_BYTES, MemoryLimit
from halfreel_runtime.plan import Phase, Plan, Profile

# Rows of a step are kept so many times over at once: before and after a norm, and what is added to them.
_HIDDEN_COPIES = 4
# What the allocator can't hand out again between two tensors of a step, at most.
_ROUNDING_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Lengths:
    """What is asked of the memory."""

    prompt_tokens: int
    output_tokens: int
    request_count: int


@dataclass(frozen=True)
class Planner:
    """Plans for one model on its device.

    Attributes:
        shape: of its network.
        number_bytes: of one number of its arithmetic.
        intermediate_size: the width of its feed-forward layers.
        warm_bytes: what the process held once the model was warm, nobody asking.
        cache_bytes_per_token: what one token takes in the cache.
        cache_is_warm: whether the whole cache is in `warm_bytes`, as on a GPU; a CPU takes its pages as they are used.
        slot_count: replies that can be written at once.
        piece_tokens: tokens of a prompt that are read at once.
        limit: what the server may take of its device.
    """

    shape: Shape
    number_bytes: int
    intermediate_size: int
    warm_bytes: int
    cache_bytes_per_token: int
    cache_is_warm: bool
    slot_count: int
    piece_tokens: int
    limit: MemoryLimit

    def plan(
        self, lengths: Lengths, profile: Profile, report: gpu_pb2.MemoryReport, sleeping_bytes: int = 0
    ) -> tuple[Plan, int]:
        """Plans requests of one size that run at once.

        Args:
            lengths: Of each, and how many.
            profile: What the plan says it follows; a language model has one way to run.
            report: The memory as it is.
            sleeping_bytes: What other servers on the device would give back for these requests.

        Returns:
            The plan, and how many such requests could run at once.
        """
        device = report.devices[0]
        context_bytes = 0 if self.limit.device.kind == "cpu" else (device.context_bytes or CONTEXT_BYTES)
        each = self._cache_bytes(lengths)
        phases = self._phases(lengths)
        plan = Plan(
            profile=profile,
            phases=phases,
            context_bytes=context_bytes,
            room=self.limit.room(device.other_processes_bytes, sleeping_bytes),
            coefficients="calibrated",
        )
        left = plan.room.alone_bytes - context_bytes - self.warm_bytes - phases[0].activation_bytes
        fitting = self.slot_count if left >= 0 else 0
        if each:
            fitting = min(fitting, max(0, left) // each)
        return plan, fitting

    def predicted_bytes(self, lengths: Lengths) -> dict[str, int]:
        """Returns the allocator's largest bytes of each phase, by its name; none on a CPU, which has no allocator."""
        return {each.name: each.reserved_bytes for each in self._phases(lengths)} if self.cache_is_warm else {}

    def fitting_output(self, lengths: Lengths, plan: Plan) -> int:
        """Returns how many tokens of output would fit where a plan does not; 0 where a shorter reply takes no less."""
        if self.cache_is_warm:
            return 0
        over = plan.needed_bytes - plan.room.alone_bytes
        fewer = -(-over // (self.cache_bytes_per_token * lengths.request_count))
        return max(0, lengths.output_tokens - fewer)

    def _phases(self, lengths: Lengths) -> tuple[Phase, ...]:
        resident = self.warm_bytes + self._cache_bytes(lengths) * lengths.request_count
        prefill = self._step_bytes(min(max(1, lengths.prompt_tokens), self.piece_tokens), 1)
        decode = self._step_bytes(lengths.request_count, lengths.request_count)
        return (
            Phase("prefill", resident, prefill, resident + prefill),
            Phase("decode", resident, decode, resident + decode),
        )

    def _cache_bytes(self, lengths: Lengths) -> int:
        """Bytes that each request takes of the cache, on top of what is there already."""
        if self.cache_is_warm:
            return 0
        return (lengths.prompt_tokens + lengths.output_tokens) * self.cache_bytes_per_token

    def _step_bytes(self, rows: int, picked: int) -> int:
        """Bytes of a step's own tensors: the widest layer's, and the logits of the rows that pick a token."""
        shape = self.shape
        heads = (2 * shape.head_count + 2 * shape.key_head_count) * shape.head_size
        layer = rows * (_HIDDEN_COPIES * shape.hidden_size + max(heads, 3 * self.intermediate_size))
        return (layer + 2 * picked * shape.vocabulary_size) * self.number_bytes + _ROUNDING_BYTES
