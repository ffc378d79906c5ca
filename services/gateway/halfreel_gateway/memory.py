"""Asks every model server for its memory, all at once.

It does not know how the servers measure it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Collection, Sequence
from concurrent import futures
from typing import Any

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_gateway.channels import ModelAccess, single_channel
from halfreel_runtime.errors import error_from_status

ANSWER_WITHIN_S = 2.0
# Of all servers together, asked from a thread: names are resolved first, and a busy host is slow.
_ANSWERS_WITHIN_S = 10.0
# A server that does not tell is one that never sleeps.
_IN_MEMORY = {gpu_pb2.MODEL_STATE_AWAKE, gpu_pb2.MODEL_STATE_UNSPECIFIED}


class ServersMemory:
    """The memory of all model servers.

    Args:
        llm_addresses: of the language model servers.
        video_addresses: of the video servers; a DNS name stands for all its records.
        access: certificates and token.
    """

    def __init__(self, llm_addresses: Sequence[str], video_addresses: Sequence[str], access: ModelAccess) -> None:
        self._access = access
        self._addresses = [(pb.SERVER_KIND_LLM, each) for each in llm_addresses]
        self._addresses += [(pb.SERVER_KIND_VIDEO, each) for each in video_addresses]
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._asking: set[asyncio.Task[Any] | None] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Makes this loop the one that `resident_together` asks on."""
        self._loop = asyncio.get_running_loop()

    def resident_together(self) -> bool:
        """Whether the models of both kinds are in memory now; False where that can't be found out. For threads."""
        if self._loop is None:
            return False
        asking = self.ask()
        try:
            asked = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the loop is closed: the gateway stops
            asking.close()
            return False
        try:
            return are_resident_together(asked.result(_ANSWERS_WITHIN_S))
        except TimeoutError:
            asked.cancel()
            return False
        except futures.CancelledError:  # likewise
            return False

    async def video_server_count(self) -> int:
        """Video servers there are now, those behind a name counted; a name that can't be resolved is one."""
        names = [address for kind, address in self._addresses if kind == pb.SERVER_KIND_VIDEO]
        return sum(map(len, await asyncio.gather(*map(resolve, names))))

    async def ask(self) -> list[pb.ServerMemory]:
        """One entry a server, in the order of the settings; one that does not answer in 2 s is told as such."""
        asking = asyncio.current_task()
        self._asking.add(asking)
        try:
            resolved = await asyncio.gather(*(resolve(address) for _, address in self._addresses))
            servers = [
                (kind, name, address)
                for (kind, name), addresses in zip(self._addresses, resolved, strict=True)
                for address in addresses
            ]
            if self._asking == {asking}:  # otherwise a connection may be in use
                await self._forget_all_but({address for _, _, address in servers})
            return list(await asyncio.gather(*(self._ask_one(*server) for server in servers)))
        finally:
            self._asking.discard(asking)

    async def close(self) -> None:
        """Ends what is asked now, and closes all connections."""
        asking = [task for task in self._asking if task is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._forget_all_but(set())

    async def _ask_one(self, kind: pb.ServerKind.ValueType, name: str, address: str) -> pb.ServerMemory:
        if address not in self._channels:
            self._channels[address] = single_channel(address, self._access, name)
        channel = self._channels[address]
        told = pb.ServerMemory(kind=kind, address=address)
        try:
            told.report.CopyFrom(await _report(kind, channel))
        except grpc.RpcError as error:
            remote = error_from_status(error)
            if remote.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                told.problem = f"did not answer within {ANSWER_WITHIN_S:.0f} s"
            elif remote.code is grpc.StatusCode.UNAVAILABLE:
                told.problem = "is not reachable"
            else:
                told.problem = f"answered {remote.reason}"
        return told

    async def _forget_all_but(self, addresses: set[str]) -> None:
        # Out of the table before anything is awaited: what is asked meanwhile opens connections of its own.
        for channel in [self._channels.pop(address) for address in self._channels.keys() - addresses]:
            await channel.close()


def are_resident_together(servers: Collection[pb.ServerMemory]) -> bool:
    """Whether every model of either kind is in memory, so that none must leave for another.

    Servers on devices of their own never take turns; those that share one do when any of them is not awake.
    """
    states: dict[str, dict[pb.ServerKind.ValueType, set[gpu_pb2.ModelState.ValueType]]] = {}
    for server in servers:
        for device in server.report.devices[:1]:  # turns are taken on the model's own device
            kinds = states.setdefault(device.gpu_uuid, {})
            kinds.setdefault(server.kind, set()).add(server.report.model_state)
    answered = {kind for kinds in states.values() for kind in kinds}
    shared = [state for kinds in states.values() if len(kinds) > 1 for each in kinds.values() for state in each]
    return answered == {pb.SERVER_KIND_LLM, pb.SERVER_KIND_VIDEO} and all(state in _IN_MEMORY for state in shared)


async def _report(kind: pb.ServerKind.ValueType, channel: grpc.aio.Channel) -> gpu_pb2.MemoryReport:
    if kind == pb.SERVER_KIND_LLM:
        llm = llm_pb2_grpc.LlmServiceStub(channel)
        return (await llm.MemoryStatus(llm_pb2.MemoryStatusRequest(), timeout=ANSWER_WITHIN_S)).report
    video = video_pb2_grpc.VideoServiceStub(channel)
    return (await video.MemoryStatus(video_pb2.MemoryStatusRequest(), timeout=ANSWER_WITHIN_S)).report


async def resolve(address: str) -> list[str]:
    """The addresses behind a name; the address itself when it is one, or when the name can't be resolved."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return [address]
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM), ANSWER_WITHIN_S)
    except (OSError, TimeoutError):
        return [address]
    hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]
