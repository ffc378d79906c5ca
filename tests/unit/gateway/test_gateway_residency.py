"""Whether both models are in memory together, by what the servers say."""

from __future__ import annotations

import pytest

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel_gateway.memory import are_resident_together

LLM, VIDEO = pb.SERVER_KIND_LLM, pb.SERVER_KIND_VIDEO
AWAKE, ASLEEP, WAKING = gpu_pb2.MODEL_STATE_AWAKE, gpu_pb2.MODEL_STATE_ASLEEP, gpu_pb2.MODEL_STATE_WAKING


def server(kind: pb.ServerKind.ValueType, gpu: str, state: gpu_pb2.ModelState.ValueType) -> pb.ServerMemory:
    report = gpu_pb2.MemoryReport(devices=[gpu_pb2.DeviceMemory(gpu_uuid=gpu)], model_state=state)
    return pb.ServerMemory(kind=kind, report=report)


@pytest.mark.parametrize(
    ("servers", "together"),
    [
        ([server(LLM, "GPU-1", AWAKE), server(VIDEO, "GPU-1", AWAKE)], True),
        ([server(LLM, "GPU-1", AWAKE), server(VIDEO, "GPU-1", ASLEEP)], False),
        ([server(LLM, "GPU-1", WAKING), server(VIDEO, "GPU-1", AWAKE)], False),
        ([server(LLM, "GPU-1", ASLEEP), server(VIDEO, "GPU-2", ASLEEP)], True),  # each wakes without the other
        ([server(LLM, "cpu", gpu_pb2.MODEL_STATE_UNSPECIFIED), server(VIDEO, "cpu", AWAKE)], True),
        ([server(LLM, "GPU-1", AWAKE), server(VIDEO, "GPU-2", AWAKE), server(VIDEO, "GPU-1", ASLEEP)], False),
        ([server(LLM, "GPU-1", AWAKE), pb.ServerMemory(kind=VIDEO, problem="is not reachable")], False),
        ([], False),
    ],
)
def test_together(servers: list[pb.ServerMemory], together: bool) -> None:
    assert are_resident_together(servers) is together
