"""Several model servers of a kind: films that are made one after another are given to each in turn."""

from __future__ import annotations

from pathlib import Path

from gateway_doubles import LLM, LlmDouble, Serving
from gateway_process import Gateway


def test_scripts_are_written_by_each_in_turn(tmp_path: Path, video: Serving) -> None:
    """A question before each script would send every script to the same server, if it took a turn itself."""
    servers = [Serving(LLM, LlmDouble()) for _ in range(2)]
    gateway = Gateway(tmp_path, [server.address for server in servers], [video.address])
    gateway.start()
    gateway.ended(gateway.create(scene_count=1).film_id)  # until then not both may be connected
    before = [len(server.double.behaviours.requests) for server in servers]
    for _ in range(4):
        gateway.ended(gateway.create(scene_count=1).film_id)
    after = [len(server.double.behaviours.requests) for server in servers]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2]
    assert gateway.stop() == 0
    for server in servers:
        server.down()
