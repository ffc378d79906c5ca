"""halfreel.llm.v1.LlmService: check, one call, map."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel_llm.admission import Admission
from halfreel_llm.batch_engine import BatchEngine
from halfreel_llm.counting import count_admitted, count_reply, failures_counted, refusals_counted
from halfreel_llm.planning import Lengths
from halfreel_llm.precision import dtype_name
from halfreel_llm.replies import merge, model_response, response
from halfreel_llm.reply import Finished
from halfreel_llm.served_model import ServedModel
from halfreel_runtime.errors import Internal
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.plan import Profile
from halfreel_runtime.sleeper import Sleeper

Context = grpc.aio.ServicerContext[Any, Any]


class LlmService(llm_pb2_grpc.LlmServiceServicer):
    """Serves one language model, once `model_loaded` has been called."""

    def __init__(
        self,
        engine: BatchEngine,
        memory: MemoryMonitor,
        instruments: Instruments,
        profile: Profile,
        sleeper: Sleeper,
    ) -> None:
        """Takes the engine that will own the model, the memory it is watched by, and who counts its replies.

        `profile` is that of plans which name none; `sleeper` knows what neighbours on the device would give back.
        """
        self._profile = profile
        self._sleeper = sleeper
        self._engine = engine
        self._memory = memory
        self._instruments = instruments
        self._served: tuple[ServedModel, Admission] | None = None

    def model_loaded(self, model: ServedModel) -> None:
        """Takes the model; called once, in the engine's thread, before the engine serves."""
        self._engine.use(model.text_model.batch)
        self._served = model, Admission(model.planner, self._memory, self._profile, self._sleeper)
        text_model = model.text_model
        levers = {
            "profile": self._profile.value,
            "precision": dtype_name(text_model.dtype),
            "weight_precision": text_model.network.weight_precision,
            "slot_count": str(text_model.slot_count),
        }
        self._memory.set_levers([gpu_pb2.LeverStatus(lever=name, value=value) for name, value in levers.items()])
        self._instruments.model(model.checkpoint.model_id, dtype_name(text_model.dtype), str(text_model.device))

    async def Generate(
        self, request: llm_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[llm_pb2.GenerateResponse]:
        """Writes one reply."""
        accepted_s = time.monotonic()
        model, admission = self._serving()
        with refusals_counted(self._instruments):
            wanted = await model.reader.read(request)
            lengths = Lengths(len(wanted.prompt_ids), wanted.max_output_tokens, 1)
            # Another thread costs a first token 0.2 ms, and is for what reads a folder.
            verdict = admission.always
            if verdict is None:
                verdict = await asyncio.to_thread(admission.admit, lengths)
            wanted = replace(wanted, predicted_bytes=model.planner.predicted_bytes(lengths))
        count_admitted(self._instruments, verdict)
        with failures_counted(self._instruments):
            async with aclosing(self._engine.write(wanted, merge=merge)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        count_reply(self._instruments, wanted, event, accepted_s)
                    yield response(event, wanted, model, accepted_s)

    async def PlanMemory(self, request: llm_pb2.PlanMemoryRequest, context: Context) -> llm_pb2.PlanMemoryResponse:
        """Tells what memory requests would take, without asking the engine."""
        model, admission = self._serving()
        lengths = model.reader.read_plan(request, model.text_model.slot_count)
        profile = Profile.of(request.profile, self._profile)
        plan, fitting = await asyncio.to_thread(admission.plan, lengths, profile)
        return llm_pb2.PlanMemoryResponse(plan=plan.message(), fitting_request_count=fitting)

    async def MemoryStatus(
        self, request: llm_pb2.MemoryStatusRequest, context: Context
    ) -> llm_pb2.MemoryStatusResponse:
        """Tells the memory, without asking the engine."""
        return llm_pb2.MemoryStatusResponse(report=self._memory.report())

    async def GetModel(self, request: llm_pb2.GetModelRequest, context: Context) -> llm_pb2.GetModelResponse:
        """Tells the model."""
        model, _ = self._serving()
        return model_response(model, self._engine.max_waiting_count)

    def _serving(self) -> tuple[ServedModel, Admission]:
        self._engine.require_serving()
        if self._served is None:
            raise Internal("the engine serves without a model")
        return self._served
