from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_video import CLIP_FRAME_COUNT, save_models

from halfreel_runtime.device import find_device
from halfreel_video.clip import ClipRequest
from halfreel_video.folder import KEYFRAME, SVD, open_folder
from halfreel_video.levers import Levers
from halfreel_video.loading import load_keyframe, load_svd
from halfreel_video.model import load_model
from halfreel_video.settings import VideoSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def svd(folders: tuple[Path, Path]) -> Any:
    return load_svd(open_folder(str(folders[0]), SVD), torch.float32, CPU)


@pytest.fixture(scope="session")
def keyframe(folders: tuple[Path, Path]) -> Any:
    return load_keyframe(open_folder(str(folders[1]), KEYFRAME), torch.float32, CPU)


@pytest.fixture
def picture() -> Image.Image:
    gradient = Image.linear_gradient("L").resize((64, 64))
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))


def clip_request(**changes: Any) -> ClipRequest:
    values: dict[str, Any] = {
        "request_id": "test",
        "prompt": "a red circle",
        "image": None,
        "width_px": 64,
        "height_px": 64,
        "frame_count": 5,
        "step_count": 2,
        "fps": 7,
        "motion_bucket": 127,
        "guidance_scale": 1.0,
        "seed": 5,
        "preview": False,
        "segment_frame_count": CLIP_FRAME_COUNT,
    }
    levers = {name: changes.pop(name) for name in [each.name for each in fields(Levers)] if name in changes}
    return ClipRequest(**({"levers": Levers(**levers)} | values | changes))


@pytest.fixture
def make_clip() -> Any:
    return clip_request


@pytest.fixture(scope="session")
def model(folders: tuple[Path, Path]) -> Any:
    settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu")
    return load_model(settings, find_device("cpu"))
