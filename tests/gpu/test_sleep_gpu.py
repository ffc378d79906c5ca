"""Sleep on a real card, and the simulated card held against it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halfreel_runtime.device import find_device  # noqa: E402
from halfreel_runtime.errors import WakeFailed  # noqa: E402
from halfreel_runtime.memory import MemoryMonitor  # noqa: E402
from halfreel_runtime.sleeper import Sleeper  # noqa: E402
from halfreel_runtime.weights_host import HostedWeights  # noqa: E402

pytestmark = pytest.mark.gpu
MIB, GIB = 2**20, 2**30


def network(layers: int = 16) -> nn.Sequential:
    """Layers of 128 MiB."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return nn.Sequential(*(nn.Linear(8192, 8192, bias=False, dtype=torch.float16) for _ in range(layers))).eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(8, 8192, device="cuda", dtype=torch.float16)


@torch.inference_mode()
def test_the_card_has_its_bytes_and_the_model_says_the_same(inputs: torch.Tensor) -> None:
    memory = MemoryMonitor(find_device("auto"))
    model = network()
    before = model(inputs).clone()
    weights = HostedWeights([model], torch.device("cuda"))
    assert weights.weight_bytes == 2 * GIB
    sleeper = Sleeper(memory)
    sleeper.model_loaded(weights)
    for _ in range(2):
        memory.clear()
        moved = sleeper.sleep()
        assert weights.place == "pinned"
        assert moved.freed_bytes >= 0.99 * weights.weight_bytes
        sleeper.wake()
        assert torch.equal(model(inputs), before)
    weights.close()


@torch.inference_mode()
def test_a_captured_graph_is_dropped_and_captured_anew(inputs: torch.Tensor) -> None:
    model = network(4)
    output = torch.empty_like(inputs)
    graphs: list[torch.cuda.CUDAGraph] = []

    def capture() -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output.copy_(model(inputs))
        graphs.append(graph)

    weights = HostedWeights([model], torch.device("cuda"), on_sleep=graphs.clear, on_woken=capture)
    capture()
    graphs[0].replay()
    before = output.clone()
    for _ in range(2):
        weights.sleep()
        assert not graphs
        filler = torch.empty(512 * MIB, dtype=torch.uint8, device="cuda")  # takes the addresses that were free
        weights.wake()
        output.zero_()
        graphs[0].replay()
        assert torch.equal(output, before)
        del filler
    weights.sleep()
    weights.wake()
    weights.close()


@torch.inference_mode()
def test_a_card_without_room_is_told_and_the_wake_succeeds_later(inputs: torch.Tensor) -> None:
    memory = MemoryMonitor(find_device("auto"))
    model = network(4)
    before = model(inputs).clone()
    weights = HostedWeights([model], torch.device("cuda"))
    sleeper = Sleeper(memory)
    sleeper.model_loaded(weights)
    sleeper.sleep()
    torch.cuda.set_per_process_memory_fraction(
        (memory.live().reserved + 200 * MIB) / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        with pytest.raises(WakeFailed):
            sleeper.wake()
        assert sleeper.wake_failed
        assert memory.live().allocated < 200 * MIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    sleeper.wake()
    assert torch.equal(model(inputs), before)
    weights.close()


@torch.inference_mode()
def test_int8_weights_leave_by_their_parts(inputs: torch.Tensor) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = network(4)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    before = model(inputs).clone()
    weights = HostedWeights([model], torch.device("cuda"))
    assert 4 * 64 * MIB <= weights.weight_bytes < 4 * 66 * MIB
    weights.sleep()
    weights.wake()
    assert torch.equal(model(inputs), before)
    weights.close()


# The same random tensors on the card and on the simulated one; in a process of its own, whose allocator is as told.
COMPARE = """
import json, os, random, sys
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:" + sys.argv[1]
import torch
from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
torch.empty(1, device="cuda")
torch.cuda.empty_cache()
torch.cuda.reset_peak_memory_stats()
simulated = SimulatedAllocator(SimulatedCard(torch.cuda.get_device_properties(0).total_memory),
                               expandable=sys.argv[1] == "True")
dice, tensors, worst = random.Random(5), {}, 0.0
for step in range(6000):
    if tensors and dice.random() < 0.5:
        real, address = tensors.pop(dice.choice(list(tensors)))
        del real
        simulated.free(address)
    elif dice.random() < 0.005:
        torch.cuda.empty_cache()
        simulated.empty_cache()
    else:
        size = int(2 ** dice.uniform(6, 28))
        tensors[step] = (torch.empty(size, dtype=torch.uint8, device="cuda"), simulated.allocate(size))
    live = simulated.live
    assert live.allocated == torch.cuda.memory_allocated(), (step, live, torch.cuda.memory_allocated())
    worst = max(worst, abs(live.reserved / torch.cuda.memory_reserved() - 1))
print(json.dumps({"worst": worst, "peak": torch.cuda.max_memory_reserved(), "simulated": simulated.peak.reserved}))
"""


@pytest.mark.parametrize("expandable", ["True", "False"])
def test_the_simulated_card_holds_what_the_real_one_holds(expandable: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMPARE, expandable], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    figures = json.loads(done.stdout)
    assert figures["simulated"] == pytest.approx(figures["peak"], rel=0.02)
    assert figures["worst"] <= 0.02
