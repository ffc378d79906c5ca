"""The NVIDIA driver's answers for one GPU, for machines without one; it can lack a sensor, or be lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

GPU = "GPU-6f1a3c52-2f57-0d2b-7b1e-aa41c0a5b9d0"


class FakeNvml:
    def __init__(self) -> None:
        self.lost = False
        self.lacks: set[str] = set()
        self.answers: dict[str, Callable[[], Any]] = {
            "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=87, memory=40),
            "nvmlDeviceGetPowerUsage": lambda: 651_200,
            "nvmlDeviceGetTemperature": lambda: 61,
            "nvmlDeviceGetTotalEnergyConsumption": lambda: 123_456_789,
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", self._handle)
        for name in self.answers:
            monkeypatch.setattr(pynvml, name, self._question(name))

    def _handle(self, gpu_uuid: str) -> str:
        if self.lost:
            raise pynvml.NVMLError_GpuIsLost()
        assert gpu_uuid == GPU
        return gpu_uuid

    def _question(self, name: str) -> Callable[..., Any]:
        def ask(handle: str, *_: Any) -> Any:
            if self.lost:
                raise pynvml.NVMLError_GpuIsLost()
            if name in self.lacks:
                raise pynvml.NVMLError_NotSupported()
            return self.answers[name]()

        return ask
