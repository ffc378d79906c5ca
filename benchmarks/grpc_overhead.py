"""What does the server around the model cost: sign-in, checks, queue, batch, text, events, metrics, traces?

    python benchmarks/grpc_overhead.py [--streams 8] [--tokens 200] [--rounds 5] [--write]

The language model's server with a null model, which picks a token at once, against a bare grpc.aio server that yields
as many of the same messages; each in a process of its own, this process is the client. `ratio_to_bare`: tokens a second
as fast as both can. `us_per_token`: processor time of the server's process for each streamed token, above the bare
server's, at a pace that both keep up with, one message a token: between the quietest rounds of both, since what else
the machine does only ever adds to it; `us_per_token_median` is between the medians. `threads_us` says whose time it is.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
from llm_bench import result_of, write_result

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc

PACE_S = 0.005
WORD = " red"


class NullRunner:
    """Picks the same token at once, or after a while. See `halfreel_llm.runner.Runner`."""

    overlaps = mixes = False
    slot_count = 64
    reuse_tokens = 64

    def __init__(self, token_id: int, pace_s: float) -> None:
        """Takes the token, and the time of a step."""
        self._token_id, self._pace_s = token_id, pace_s

    def piece_tokens(self, *, alone: bool, prompts: int) -> int:
        """Everything."""
        return 4096

    def begin(self, slot: int, sampling: Any) -> None:
        """Nothing."""

    def reuse(self, source: int, slot: int, token_count: int) -> None:
        """Nothing."""

    def read(self, slot: int, token_ids: Sequence[int], begin: int, *, last: bool) -> Any:
        """Nothing."""

    def write(self, slots: list[int]) -> Any:
        """A while."""
        if self._pace_s:
            time.sleep(self._pace_s)

    def kept(self, logits: Any) -> Any:
        """Nothing."""

    def pick(self, logits: Any, slots: list[int], masks: Mapping[int, Any]) -> list[int]:
        """The token."""
        return [self._token_id] * len(slots)

    def wait(self, picked: list[int]) -> list[int]:
        """The token."""
        return picked

    def clear(self, slot: int) -> None:
        """Nothing."""


async def serve_ours(pace_s: float) -> None:
    """The whole server, but for its network."""
    from halfreel_llm import __main__ as program
    from halfreel_llm import generation
    from halfreel_llm.batch import Batch
    from halfreel_llm.settings import LlmSettings

    real = generation.TextModel.__init__

    def with_null_model(self: Any, network: Any, tokenizer: Any, memory: Any, **sizes: Any) -> None:
        real(self, network, tokenizer, memory, **sizes)
        token_id = next(each for each in sorted(tokenizer.text_ids) if len(tokenizer.stream().push(each)) > 1)
        runner: Any = NullRunner(token_id, pace_s)
        self.batch = Batch(runner, tokenizer, network.shape.vocabulary_size, memory)

    generation.TextModel.__init__ = with_null_model  # type: ignore[method-assign]
    settings = LlmSettings(device="cpu", port=0, metrics_port=0, thread_count=1)
    server = program.make_server(settings)
    await server.start()
    while not server._ready:
        await asyncio.sleep(0.05)
    print(server.port, flush=True)
    await until_told_apart()


class Bare(llm_pb2_grpc.LlmServiceServicer):
    """Yields messages."""

    def __init__(self, pace_s: float) -> None:
        """Takes the pace."""
        self._pace_s = pace_s

    async def Generate(self, request: llm_pb2.GenerateRequest, context: Any) -> AsyncIterator[llm_pb2.GenerateResponse]:
        """As many as asked for."""
        response = llm_pb2.GenerateResponse
        yield response(queued=response.Queued())
        for _ in range(request.max_output_token_count):
            if self._pace_s:
                await asyncio.sleep(self._pace_s)
            yield response(text_delta=response.TextDelta(text=WORD, token_count=1))
        yield response(completed=response.Completed(output_token_count=request.max_output_token_count))

    async def PlanMemory(self, request: Any, context: Any) -> Any:
        """Nothing."""

    async def MemoryStatus(self, request: Any, context: Any) -> Any:
        """Nothing."""

    async def GetModel(self, request: Any, context: Any) -> Any:
        """Nothing."""


async def serve_bare(pace_s: float) -> None:
    """Nothing but grpc.aio."""
    server = grpc.aio.server()
    llm_pb2_grpc.add_LlmServiceServicer_to_server(Bare(pace_s), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await until_told_apart()


async def until_told_apart() -> None:
    """Serves for ever; for each line of its input, tells the names of this process's threads."""
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps({str(each.native_id): each.name for each in threading.enumerate()}), flush=True)


def thread_us(pid: int) -> dict[str, float]:
    """Processor time of each of a process's threads that live, by number; none where the system does not tell."""
    taken = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            taken[task.name] = int((task / "schedstat").read_text().split()[0]) / 1000
        except OSError:  # it has ended
            continue
    return taken


async def stream(stub: Any, tokens: int) -> tuple[int, int]:
    """One reply: its tokens and messages."""
    message = llm_pb2.Message(role=llm_pb2.ROLE_USER, content="a red circle moving over a blue sky")
    counted = messages = 0
    async for event in stub.Generate(
        llm_pb2.GenerateRequest(messages=[message], max_output_token_count=tokens, seed=1, temperature=0.0)
    ):
        if event.WhichOneof("event") == "text_delta":
            counted += event.text_delta.token_count
            messages += 1
    return counted, messages


def cpu_s(pid: int) -> float:
    """Processor time of a process: to the nanosecond on Linux, else to a hundredth of a second."""
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def round_of(port: int, pid: int, streams: int, tokens: int) -> dict[str, Any]:
    """So many replies at once."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)
        await stream(stub, 4)
        threads, before, began = thread_us(pid), cpu_s(pid), time.perf_counter()
        replies = await asyncio.gather(*(stream(stub, tokens) for _ in range(streams)))
        took, used = time.perf_counter() - began, cpu_s(pid) - before
        parts = {task: us - threads.get(task, 0.0) for task, us in thread_us(pid).items()}
    counted = sum(reply[0] for reply in replies)
    return {
        "tok_s": counted / took,
        "cpu_us": used * 1e6 / counted,
        "messages": sum(reply[1] for reply in replies),
        "threads": {task: us / counted for task, us in parts.items()},
    }


def measure(streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Both servers in turns, at full speed and at the pace."""
    figures: dict[str, Any] = {"streams": streams, "tokens": tokens}
    for name, pace_s in (("fast", 0.0), ("paced", PACE_S)):
        servers, found = {}, {"ours": [], "bare": []}  # type: ignore[var-annotated]
        try:
            for kind in found:
                command = [sys.executable, __file__, "--serve", kind, "--pace", str(pace_s)]
                servers[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            ports = {kind: _port(server) for kind, server in servers.items()}
            for _ in range(rounds):
                for kind, server in servers.items():
                    found[kind].append(asyncio.run(round_of(ports[kind], server.pid, streams, tokens)))
            names = {kind: _thread_names(server) for kind, server in servers.items()}
        finally:
            for server in servers.values():
                server.kill()
        for kind, rows in found.items():
            for key in ("tok_s", "cpu_us", "messages"):
                figures[f"{name}_{kind}_{key}"] = statistics.median(row[key] for row in rows)
            quietest = min(rows, key=lambda row: row["cpu_us"])
            figures[f"{name}_{kind}_cpu_us_least"] = quietest["cpu_us"]
            figures[f"{name}_{kind}_threads_us"] = _by_name(quietest["threads"], names[kind])
        print(json.dumps(figures), flush=True)
    figures["ratio_to_bare"] = figures["fast_ours_tok_s"] / figures["fast_bare_tok_s"]
    figures["us_per_token"] = figures["paced_ours_cpu_us_least"] - figures["paced_bare_cpu_us_least"]
    figures["us_per_token_median"] = figures["paced_ours_cpu_us"] - figures["paced_bare_cpu_us"]
    return figures


def _thread_names(server: subprocess.Popen[str]) -> dict[str, str]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    names: dict[str, str] = json.loads(
        next(line for line in server.stdout if line.startswith('{"') and "ainThread" in line)
    )
    return names


def _by_name(threads: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """Microseconds a token of the threads, those of a pool together, the largest first; gRPC's own have no name."""
    summed: dict[str, float] = {}
    for task, us in threads.items():
        name = re.sub(r"_\d+$", "", names.get(task, "grpc"))
        summed[name] = summed.get(name, 0.0) + us
    return {name: round(us, 1) for name, us in sorted(summed.items(), key=lambda each: -each[1]) if us >= 0.05}


def _port(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    for line in server.stdout:
        if line.strip().isdecimal():
            return int(line)
    raise RuntimeError("the server did not start")


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--serve", choices=("ours", "bare"))
    arguments.add_argument("--pace", type=float, default=0.0)
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    if read.serve:
        asyncio.run((serve_ours if read.serve == "ours" else serve_bare)(read.pace))
        return
    line = result_of(measure(read.streams, read.tokens, read.rounds), where="cpu", libraries=("grpcio", "protobuf"))
    if read.write:
        write_result(line, "grpc_overhead", "cpu")
    print(line)


if __name__ == "__main__":
    main()
