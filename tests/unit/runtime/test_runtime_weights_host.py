"""Weights off the device and back: the same objects, the same bytes, and memory that is really given back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402

import halfreel_runtime.host_arena  # noqa: E402
from halfreel_runtime.host_arena import HostArena, PinError  # noqa: E402
from halfreel_runtime.host_memory import HostMemory  # noqa: E402
from halfreel_runtime.memory_cpu import CpuMemorySource  # noqa: E402
from halfreel_runtime.weights_host import HostedWeights  # noqa: E402

CPU = torch.device("cpu")
MIB = 2**20


def resident() -> int:
    """Without what is free in the heap: a process that has run for long may have 64 MiB of it, resident or not."""
    CpuMemorySource().release_cached()
    return int(psutil.Process().memory_info().rss)


class Network(nn.Module):
    """Tied weights, a buffer, a view of a buffer, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.randn(4, 16))
        self.register_buffer("row", self.table[1])

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids) + self.table[0] + self.row
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        output: Tensor = self.head(hidden)
        return output


IDS = torch.arange(7)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def test_a_woken_model_says_the_same_to_the_byte_and_is_made_of_the_same_objects(network: Network) -> None:
    before = network(IDS)
    objects = {name: id(each) for name, each in [*network.named_parameters(), *network.named_buffers()]}
    weights = HostedWeights([network], CPU)
    for _ in range(3):
        weights.sleep()
        assert all(each.untyped_storage().nbytes() == 0 for each in network.parameters())
        weights.wake()
        assert torch.equal(network(IDS), before)
    assert {name: id(each) for name, each in [*network.named_parameters(), *network.named_buffers()]} == objects
    assert network.head.weight is network.embedding.weight
    network.table[1, 0] += 1  # the view is still one
    assert network.row[0] == network.table[1, 0]


def test_shared_memory_counts_once(network: Network) -> None:
    alone = sum(each.numel() * 4 for each in network.parameters()) + network.table.numel() * 4
    assert HostedWeights([network, network.layers], CPU).weight_bytes == alone


def test_a_view_that_no_module_knows_sees_the_weights_again(network: Network) -> None:
    view = network.embedding.weight[3:5]
    before = view.clone()
    weights = HostedWeights([network], CPU)
    weights.sleep()
    weights.wake()
    assert torch.equal(view, before)


def test_the_memory_of_64_mib_is_given_back() -> None:
    module = nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    with torch.no_grad():
        module.weight.copy_(torch.arange(4096.0).expand(4096, 4096))
    weights = HostedWeights([module], CPU)
    assert weights.weight_bytes == 64 * MIB
    awake = resident()
    weights.sleep()
    asleep = resident()
    assert awake - asleep == pytest.approx(64 * MIB, abs=4 * MIB)
    weights.wake()
    assert resident() - asleep == pytest.approx(64 * MIB, abs=4 * MIB)
    assert torch.equal(module.weight[7], torch.arange(4096.0))
    assert weights.place == "file"


def test_weights_that_lie_in_a_mapped_file_leave_and_come_back(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(100, 100), "b": torch.randn(50)}, path)
    tensors = load_file(path)
    module = nn.ParameterDict({name: nn.Parameter(each, requires_grad=False) for name, each in tensors.items()})
    before = {name: each.clone() for name, each in module.items()}
    del tensors
    weights = HostedWeights([module], CPU)
    weights.sleep()
    assert all(each.numel() == 0 or each.untyped_storage().nbytes() == 0 for each in module.parameters())
    weights.wake()
    assert all(torch.equal(module[name], each) for name, each in before.items())


def test_tensors_of_no_module_leave_too() -> None:
    table = torch.randn(10, 10)
    before = table.clone()
    weights = HostedWeights([], CPU, tensors=[table])
    assert weights.weight_bytes == 400
    weights.sleep()
    assert table.untyped_storage().nbytes() == 0
    weights.wake()
    assert torch.equal(table, before)


def test_scratch_gives_its_memory_back_without_a_copy_and_comes_back_empty(network: Network) -> None:
    before = network(IDS)
    cache = torch.randn(1000, 1000)
    view = cache[10:20]
    for reload in (None, fresh_of(network)):
        weights = HostedWeights([network], CPU, scratch=[cache, network.table], reload=reload)
        assert weights.weight_bytes == HostedWeights([network], CPU).weight_bytes + 4_000_000
        weights.sleep()
        assert cache.untyped_storage().nbytes() == 0
        assert weights.host_bytes < 100_000
        weights.wake()
        assert torch.equal(network(IDS), before)  # what is a weight as well is kept
        assert not cache.any()
        view += 1
        assert cache.sum() == 10_000
        cache.zero_()


def test_weights_elsewhere_stay_where_they_are(network: Network) -> None:
    with torch.device("meta"):
        network.extra = nn.Linear(5, 5)
    weights = HostedWeights([network], CPU)
    weights.sleep()
    weights.wake()
    assert network.extra.weight.is_meta


def test_a_weight_made_of_several_tensors_leaves_by_its_parts() -> None:
    module = nn.ParameterList([nn.Parameter(TwoTensor(torch.randn(8, 8), torch.randn(8, 8)), requires_grad=False)])
    before = [module[0].a.clone(), module[0].b.clone()]
    weights = HostedWeights([module], CPU)
    assert weights.weight_bytes == 2 * 8 * 8 * 4
    weights.sleep()
    assert module[0].a.untyped_storage().nbytes() == module[0].b.untyped_storage().nbytes() == 0
    weights.wake()
    assert torch.equal(module[0].a, before[0])
    assert torch.equal(module[0].b, before[1])


def fresh_of(network: Network) -> Callable[[], list[nn.Module]]:
    state = {name: each.clone() for name, each in network.state_dict().items()}

    def reload() -> list[nn.Module]:
        fresh = Network().eval().requires_grad_(False)
        fresh.load_state_dict(state)
        return [fresh]

    return reload


def test_weights_are_dropped_and_read_anew_where_there_is_a_reader(network: Network) -> None:
    before = network(IDS)
    weights = HostedWeights([network], CPU, reload=fresh_of(network))
    for _ in range(2):
        weights.sleep()
        assert all(each.untyped_storage().nbytes() == 0 for each in network.parameters())
        assert (weights.place, weights.host_bytes) == ("reload", 0)
        weights.wake()
        assert torch.equal(network(IDS), before)
    assert network.head.weight is network.embedding.weight


def test_another_model_is_not_taken_for_the_same(network: Network) -> None:
    weights = HostedWeights([network], CPU, reload=lambda: [nn.Linear(3, 3)])
    weights.sleep()
    with pytest.raises(RuntimeError, match="is not the one"):
        weights.wake()
    assert all(each.untyped_storage().nbytes() == 0 for each in network.parameters())


@pytest.mark.parametrize("reading", [False, True], ids=["file", "reload"])
def test_a_wake_that_fails_leaves_it_asleep_and_can_be_tried_again(network: Network, reading: bool) -> None:
    before = network(IDS)
    calls: list[str] = []
    fails = [True]

    def woken() -> None:
        calls.append("woken")
        if fails[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    weights = HostedWeights(
        [network],
        CPU,
        reload=fresh_of(network) if reading else None,
        on_sleep=lambda: calls.append("sleep"),
        on_woken=woken,
    )
    weights.sleep()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            weights.wake()
        assert all(each.untyped_storage().nbytes() == 0 for each in network.parameters())
    fails[0] = False
    weights.wake()
    assert torch.equal(network(IDS), before)
    assert calls == ["sleep", "woken", "sleep", "woken", "sleep", "woken"]


def test_what_holds_addresses_is_told_before_and_after(network: Network) -> None:
    seen: list[tuple[str, int]] = []

    def look(word: str) -> Callable[[], None]:
        return lambda: seen.append((word, network.table.untyped_storage().nbytes()))

    weights = HostedWeights([network], CPU, on_sleep=look("sleep"), on_woken=look("woken"))
    weights.sleep()
    weights.sleep()
    weights.wake()
    weights.wake()
    assert seen == [("sleep", 4 * 16 * 4), ("woken", 4 * 16 * 4)]


def test_a_full_disk_leaves_the_model_awake(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    before = network(IDS)
    monkeypatch.setattr(os, "posix_fallocate", full)
    weights = HostedWeights([network], CPU)
    with pytest.raises(OSError, match="No space"):
        weights.sleep()
    assert torch.equal(network(IDS), before)
    monkeypatch.undo()
    weights.sleep()
    weights.wake()
    assert torch.equal(network(IDS), before)


def test_an_arena_is_handed_out_in_pieces_that_cross_no_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halfreel_runtime.host_arena, "PIECE_BYTES", 100)
    arena = HostArena(1000, pinned=False)
    pieces = [(begin, len(piece)) for begin, piece in arena.pieces(150, 200)]
    assert pieces == [(0, 50), (50, 100), (150, 50)]
    for begin, piece in arena.pieces(150, 200):
        piece.copy_(torch.arange(begin, begin + len(piece)).to(torch.uint8))
    whole = torch.cat([piece for _, piece in arena.pieces(0, 1000)])
    assert torch.equal(whole[150:350], torch.arange(200).to(torch.uint8))
    assert whole.sum() == torch.arange(200).sum()


class Driver:
    """A driver that locks so many pieces, and what torch was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, piece_count: int) -> None:
        self.done: list[str] = []
        self.piece_count = piece_count
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)
        monkeypatch.setattr(torch, "zeros", self.launch)

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        self.done.append("lock")
        return 0 if self.done.count("lock") <= self.piece_count else 2

    def cudaHostUnregister(self, address: int) -> int:
        self.done.append("unlock")
        return 0

    def launch(self, size: int, *, device: str) -> Tensor:
        self.done.append(f"launch on {device}")
        raise torch.AcceleratorError("CUDA error: out of memory")  # of the refusal, which is forgotten by this


def test_a_refusal_of_the_driver_is_no_error_of_whoever_comes_next(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halfreel_runtime.host_arena, "PIECE_BYTES", 4096)
    driver = Driver(monkeypatch, 2)
    with pytest.raises(PinError, match="cudaHostRegister of 4096 bytes: error 2"):
        HostArena(5 * 4096, pinned=True)
    assert driver.done == ["lock", "lock", "lock", "unlock", "unlock", "launch on cuda"]
    weights = HostedWeights([network], CPU)
    weights._pin(5 * 4096)
    assert weights.place == "reload"


def test_a_host_with_too_little_memory_is_not_asked_to_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, 99)
    monkeypatch.setattr(halfreel_runtime.host_arena, "host_memory", lambda: HostMemory(8 * 2**30, 2 * 2**30 + 4095))
    with pytest.raises(PinError, match="pinning 4096 must leave 2147483648"):
        HostArena(4096, pinned=True)
    assert driver.done == []
    arena = HostArena(4095, pinned=True)
    arena.close()
    assert driver.done == ["lock", "unlock"]
