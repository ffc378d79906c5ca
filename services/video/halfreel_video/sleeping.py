"""Both models asleep: on a GPU by the layout, which knows what is on it; on a CPU into a file.

Knows no server, nor when they sleep.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError

from halfreel_runtime.errors import HalfreelError
from halfreel_runtime.failures import release_frames
from halfreel_runtime.memory_limit import CONTEXT_BYTES
from halfreel_runtime.weights_host import HostedWeights
from halfreel_video.folder import KEYFRAME, SVD, open_folder
from halfreel_video.model import VideoModel
from halfreel_video.settings import VideoSettings
from halfreel_video.shortage import is_shortage

# A clip of the default model takes so much beside the weights with no lever that costs time: 15.5 GiB in all.
_CLIP_BYTES = 12 * 2**30


def guessed_bytes(settings: VideoSettings) -> int:
    """About what the server will take of its device, by the models' files; 0 where they are not to be had."""
    try:
        svd_folder = open_folder(settings.model, SVD)
        keyframe_folder = open_folder(settings.keyframe_model, KEYFRAME)
        count = svd_folder.parameter_count() + keyframe_folder.parameter_count()
    except (HalfreelError, OSError, ValueError, SafetensorError):  # loading will say so
        return 0
    return count * (4 if settings.precision == "fp32" else 2) + _CLIP_BYTES + CONTEXT_BYTES


class SleepingVideo:
    """See `SleepingModel`."""

    def __init__(self, model: VideoModel) -> None:
        """Takes the loaded model."""
        self._layout = model.layout
        self._left_bytes = 0  # of the device, while they sleep
        self._file: HostedWeights | None = None
        if model.device.kind == "cpu":  # the layout's home is where the weights are already
            self._file = HostedWeights(_parts(model.svd, model.keyframe), torch.device("cpu"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the device that come free."""
        if self._file is not None:
            return self._file.weight_bytes
        return self._left_bytes or self._layout.device_bytes()

    def prepare_sleep(self) -> None:
        """Nothing: the layout keeps a part at home from the first time that it leaves."""

    def sleep(self) -> None:
        """Takes both off the device."""
        if self._file is not None:
            self._file.sleep()
            for replica in self._layout.replicas:
                replica.drop()
            return
        self._left_bytes = self._layout.device_bytes()
        self._layout.park_all()

    def wake(self) -> None:
        """Brings back what the last clip's levers keep on the device between two clips.

        Where that has no room any more, parts come when they are used: a clip with other levers may still fit.
        """
        if self._file is not None:
            self._file.wake()
            for replica in self._layout.replicas:
                replica.load()
            return
        try:
            self._layout.bring_all()
        except Exception as error:
            release_frames(error)
            self._layout.park_all()
            if not is_shortage(error):
                raise
            self._layout.take(replace(self._layout.levers, offload_idle_parts=True))
        self._left_bytes = 0


def _parts(*pipelines: Any) -> list[torch.nn.Module]:
    parts = [part for pipeline in pipelines for part in pipeline.components.values()]
    return [part for part in parts if isinstance(part, torch.nn.Module)]
