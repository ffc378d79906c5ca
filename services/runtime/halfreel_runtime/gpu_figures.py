"""What the NVIDIA driver tells of a GPU's work: utilisation, power, temperature, energy; absent what it can't tell.

No call waits for work on the GPU. It does not know torch, nor which process the work is of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

_logger = logging.getLogger(__name__)

# A driver that can't be asked is tried again after this: it may have been reloaded.
RETRY_AFTER_S = 30.0


@dataclass(frozen=True)
class GpuFigures:
    """One reading; None stands for what the driver did not tell.

    Attributes:
        utilization_ratio: part of the last sample period in which some kernel ran, 0 to 1.
        power_watts: drawn by the whole board.
        temperature_celsius: of the chip.
        energy_joules: used since the driver was loaded.
    """

    utilization_ratio: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    energy_joules: float | None = None


class GpuReader:
    """Reads one GPU. May be asked by any thread.

    Args:
        gpu_uuid: as the driver names it.
    """

    def __init__(self, gpu_uuid: str) -> None:
        self._gpu_uuid = gpu_uuid
        self._lock = threading.Lock()
        self._handle: Any = None
        self._tried_at = -RETRY_AFTER_S
        self._told = False

    def read(self) -> GpuFigures:
        """The figures at this moment. An absent driver, or one that fails midway, is logged once."""
        handle = self._open()
        if handle is None:
            return GpuFigures()
        utilization = self._ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        power = self._ask(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        temperature = self._ask(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        energy = self._ask(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return GpuFigures(
            utilization_ratio=None if utilization is None else utilization / 100,  # a percentage
            power_watts=None if power is None else power / 1000,  # milliwatts
            temperature_celsius=temperature,
            energy_joules=None if energy is None else energy / 1000,  # millijoules
        )

    def _open(self) -> Any:
        with self._lock:
            if self._handle is None and time.monotonic() - self._tried_at >= RETRY_AFTER_S:
                self._tried_at = time.monotonic()
                try:
                    pynvml.nvmlInit()
                    self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._gpu_uuid)
                    self._told = False
                except pynvml.NVMLError as error:
                    self._failed(error)
            return self._handle

    def _ask(self, question: Callable[[], Any]) -> float | None:
        try:
            return float(question())
        except pynvml.NVMLError_NotSupported:  # some GPUs have no such sensor
            return None
        except pynvml.NVMLError as error:  # the driver was reloaded, or the GPU fell off its bus
            with self._lock:
                self._handle = None
                self._tried_at = time.monotonic()
                self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            _logger.warning("gpu_figures_absent", extra={"reason": str(error), "gpu_uuid": self._gpu_uuid})
