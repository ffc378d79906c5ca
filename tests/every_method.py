"""A server with every method of the contract, whose servicers do nothing but remember that they were reached."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor, message_factory

import halfreel
from halfreel_runtime.caller import Caller, caller_var
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ServerSettings


@dataclass(frozen=True)
class Method:
    """A method as its descriptor has it."""

    descriptor: descriptor.MethodDescriptor
    grpc_module: Any

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def streams(self) -> bool:
        return bool(self.descriptor.server_streaming)

    @property
    def response(self) -> type[Any]:
        return message_factory.GetMessageClass(self.descriptor.output_type)


def contract_methods() -> list[Method]:
    """All methods of all services in the packages of the contract, whichever there are."""
    modules = [name for _, name, _ in pkgutil.walk_packages(halfreel.__path__, "halfreel.") if name.endswith("_pb2")]
    return [
        Method(method, importlib.import_module(f"{name}_grpc"))
        for name in modules
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


METHODS = contract_methods()


class Reached:
    """What came through to the servicers: the method's path, and who called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Caller]] = []

    def servicer(self, methods: list[Method]) -> Any:
        """Answers each of the methods with an empty message."""
        return type("Servicer", (), {method.descriptor.name: self._method(method) for method in methods})()

    def _method(self, method: Method) -> Any:
        if method.streams:

            async def stream(_self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
                self.calls.append((method.path, caller_var.get()))
                yield method.response()

            return stream

        async def unary(_self: Any, request: Any, context: Any) -> Any:
            self.calls.append((method.path, caller_var.get()))
            return method.response()

        return unary


def server_of_everything(settings: ServerSettings) -> tuple[Server, Reached]:
    server, reached = Server(settings, service="llm"), Reached()
    services: dict[str, list[Method]] = {}
    for method in METHODS:
        services.setdefault(method.descriptor.containing_service.full_name, []).append(method)
    for name, methods in services.items():
        register = getattr(methods[0].grpc_module, f"add_{name.rpartition('.')[2]}Servicer_to_server")
        server.add(register, reached.servicer(methods), name)
    return server, reached
