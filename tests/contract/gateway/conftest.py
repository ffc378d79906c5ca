"""A real gateway process between the test and two scripted model servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_doubles import LLM, VIDEO, LlmDouble, Serving, VideoDouble
from gateway_process import Gateway

from halfreel.gpu.v1 import gpu_pb2


@pytest.fixture(scope="session")
def llm() -> Iterator[Serving]:
    serving = Serving(LLM, LlmDouble())
    yield serving
    serving.down()


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(VIDEO, VideoDouble(tmp_path_factory.mktemp("clips")))
    yield serving
    serving.down()


@pytest.fixture(autouse=True)
def well_behaved(llm: Serving, video: Serving) -> Iterator[None]:
    """Every test begins with servers that are up and behave."""
    for serving in (llm, video):
        if serving._server is None:
            serving.up()
        serving.double.behaviours.reset()
    llm.double.context_token_count = 8192
    video.double.model_state = gpu_pb2.MODEL_STATE_AWAKE
    video.double.step_s, video.double.crf, video.double.noisy, video.double.most_running = 0.0, "18", False, 0
    yield
    for serving in (llm, video):
        serving.double.behaviours.let_go.set()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, llm: Serving, video: Serving) -> Iterator[Gateway]:
    """One gateway for all tests that leave it as it was."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), [llm.address], [video.address])
    gateway.start()
    yield gateway
    assert gateway.stop() == 0


@pytest.fixture
def own_gateway(tmp_path: Path, llm: Serving, video: Serving) -> Iterator[Gateway]:
    """A gateway of the test's own, not started yet."""
    gateway = Gateway(tmp_path, [llm.address], [video.address])
    yield gateway
    if gateway.process is not None:
        gateway.stop()
