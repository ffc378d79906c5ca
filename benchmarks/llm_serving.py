"""What does a client of the language model's server get: first token, tokens a second, and gaps under load?

    python benchmarks/llm_serving.py [--tiny] [--folder /dev/shm/chatglm3] [--streams 1,64,256] [--write]

The real server in a process of its own, on a model of ChatGLM3-6B's shape, random weights, replies of full length; this
process is the client. Tokens are counted, not messages, from the first request sent to the last token received,
prompts included. The last line is the result.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import grpc
from llm_bench import card, make_folder, prompt_of, result_of, serving, write_result

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc


class Client:
    """Sends prompts of a length in tokens, and times what comes."""

    def __init__(self, stub: Any) -> None:
        """Takes the stub."""
        self._stub = stub
        self._seed = 0
        self._tokens_per_word = 1.0
        self._frame = 0.0

    async def calibrate(self) -> None:
        """Learns how many tokens a word has, and the chat's frame."""
        few, many = [(await self.write(prompt_of(1, words), 1))["prompt_tokens"] for words in (20, 120)]
        self._tokens_per_word = (many - few) / 100
        self._frame = few - 20 * self._tokens_per_word

    def prompt(self, tokens: int) -> str:
        """A prompt of about so many tokens, and at most so many."""
        self._seed += 1
        return prompt_of(self._seed, max(1, int((tokens - self._frame) / self._tokens_per_word * 0.99)))

    async def write(self, text: str, tokens: int, temperature: float = 0.8) -> dict[str, Any]:
        """One reply: seconds to its first text, and when how many tokens came."""
        request = llm_pb2.GenerateRequest(
            messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content=text)],
            max_output_token_count=tokens,
            temperature=temperature,
            seed=self._seed,
        )
        began = time.perf_counter()
        came: list[tuple[float, int]] = []
        completed = None
        async for event in self._stub.Generate(request):
            kind = event.WhichOneof("event")
            if kind == "text_delta":
                came.append((time.perf_counter() - began, event.text_delta.token_count))
            elif kind == "completed":
                completed = event.completed
        assert completed is not None
        return {
            "first_s": came[0][0] if came else None,
            "whole_s": time.perf_counter() - began,
            "came": came,
            "tokens": completed.output_token_count,
            "prompt_tokens": completed.prompt_token_count,
        }


def gaps_of(reply: dict[str, Any]) -> list[float]:
    """The seconds between two texts, but for the first few."""
    return [later[0] - earlier[0] for earlier, later in itertools.pairwise(reply["came"][3:])]


async def together(client: Client, streams: int, prompt: int, output: int) -> dict[str, float]:
    """So many replies at once, all sent at the same moment."""
    prompts = [client.prompt(prompt) for _ in range(streams)]
    began = time.perf_counter()
    replies = await asyncio.gather(*(client.write(text, output) for text in prompts))
    took = time.perf_counter() - began
    tokens = sum(reply["tokens"] for reply in replies)
    firsts = sorted(reply["first_s"] for reply in replies)
    return {
        f"tok_s_{streams}": tokens / took,
        f"seconds_{streams}": took,
        f"tokens_{streams}": tokens,
        f"prompt_tokens_{streams}": sum(reply["prompt_tokens"] for reply in replies),
        f"ttft_median_{streams}_ms": 1000 * statistics.median(firsts),
        f"messages_{streams}": sum(len(reply["came"]) for reply in replies),
    }


async def gap_under_load(client: Client, prompt: int, output: int, others: int) -> dict[str, float]:
    """The gaps of one running reply while others with long prompts come and go."""
    alone = gaps_of(await client.write(client.prompt(prompt // 4), output))
    running = asyncio.create_task(client.write(client.prompt(prompt // 4), output))
    await asyncio.sleep(0.2)

    async def visitor(number: int) -> None:
        await asyncio.sleep(0.05 * number)
        while not running.done():
            await client.write(client.prompt(prompt), max(8, output // 8))

    visitors = [asyncio.create_task(visitor(number)) for number in range(others)]
    gaps = sorted(gaps_of(await running))
    await asyncio.gather(*visitors)
    median = statistics.median(gaps)
    return {
        "gap_alone_median_ms": 1000 * statistics.median(alone),
        "gap_median_ms": 1000 * median,
        "gap_p99_ms": 1000 * gaps[int(0.99 * len(gaps))],
        "gap_p99_over_median": gaps[int(0.99 * len(gaps))] / median,
    }


async def measure(address: str, streams: list[int], tiny: bool) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {}
    prompt, long, output = (64, 200, 40) if tiny else (512, 2048, 512)

    def tell(**values: Any) -> None:
        figures.update(values)
        print(json.dumps(values), flush=True)

    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = llm_pb2_grpc.LlmServiceStub(channel)
        client = Client(stub)
        await client.calibrate()
        for length in (prompt, long):
            replies = [await client.write(client.prompt(length), 4) for _ in range(7)]
            firsts = [1000 * reply["first_s"] for reply in replies[2:]]
            tell(
                **{f"ttft_{length}_ms": statistics.median(firsts), f"tokens_in_{length}": replies[-1]["prompt_tokens"]}
            )
        for name, temperature in (("greedy", 0.0), ("sampled", 0.8)):
            reply = await client.write(client.prompt(prompt), output, temperature)
            tell(**{f"ms_per_token_1_{name}": 1000 * (reply["whole_s"] - reply["first_s"]) / (reply["tokens"] - 1)})
        for count in streams:
            if count > 1:
                tell(**await together(client, count, prompt, output))
        tell(**await gap_under_load(client, prompt, output, 4))
        device = (await stub.MemoryStatus(llm_pb2.MemoryStatusRequest())).report.devices[0]
        plan = (await stub.PlanMemory(llm_pb2.PlanMemoryRequest(prompt_token_count=prompt))).plan
        tell(peak_gib=device.process_peak.reserved_bytes / 2**30, planned_gib=plan.peak_reserved_bytes / 2**30)
    return figures


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--folder", type=Path, default=Path("/dev/shm/halfreel-chatglm3"))
    arguments.add_argument("--streams", default="1,64,256")
    arguments.add_argument("--flags", default="", help="more flags of the server")
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    folder = read.folder.with_name(read.folder.name + "-tiny") if read.tiny else read.folder
    streams = [int(each) for each in read.streams.split(",")]
    print(json.dumps({"made_s": round(make_folder(folder, tiny=read.tiny), 1)}), flush=True)
    context = "400" if read.tiny else "2560"
    flags = ["--slot-count", str(max(streams)), "--context-token-count", context, *read.flags.split()]
    with serving(folder, *flags, log=Path("/tmp/llm_serving.log")) as server:
        print(json.dumps({"serving_s": round(server.serving_s, 2)}), flush=True)
        figures = asyncio.run(measure(server.address, streams, read.tiny))
    line = result_of(figures, where=card(), libraries=("torch", "transformers", "grpcio"))
    if read.write:
        write_result(line, "llm_serving", card())
    print(line)


if __name__ == "__main__":
    main()
