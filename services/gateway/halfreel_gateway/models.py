"""What the model servers say of their models, and what that means for a film's settings.

It does not know films.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_gateway import script
from halfreel_gateway.patience import Patience
from halfreel_gateway.running import StalledError, StepRun
from halfreel_runtime.checks import Checks

# GetModel never waits for the model, but a host whose cores all compute is slow to answer.
_ANSWER_S = 30.0
# A client waits for this, and only until the first answer.
_FIRST_ANSWER_S = 0.5


@dataclass(frozen=True)
class RenderPlan:
    """What all clips of a film have in common, so that they can be joined as they are.

    Attributes:
        width_px: width of the picture.
        height_px: height of the picture.
        fps: frames a second.
    """

    width_px: int
    height_px: int
    fps: int


class Models:
    """Asks model servers for their models.

    Args:
        llm: channel to the language model servers.
        video: channel to the video servers.
    """

    def __init__(self, llm: grpc.Channel, video: grpc.Channel) -> None:
        self._llm = llm_pb2_grpc.LlmServiceStub(llm)
        self._video = video_pb2_grpc.VideoServiceStub(video)
        self._known_video: video_pb2.GetModelResponse | None = None

    def llm(self, run: StepRun, patience: Patience) -> llm_pb2.GetModelResponse:
        """The language model; waits for a server.

        Raises:
            FilmFailedError: the servers can't tell.
        """
        while True:
            call = self._llm.GetModel.future(llm_pb2.GetModelRequest(), timeout=_ANSWER_S)
            try:
                with run.calling(call):
                    answer = call.result()
            except grpc.RpcError as error:
                patience.call_failed(error, began=False)
            except StalledError:
                patience.stalled()
            else:
                patience.heard()
                return answer

    def video(self, run: StepRun, patience: Patience) -> video_pb2.GetModelResponse:
        """The video model; waits for a server.

        Raises:
            FilmFailedError: the servers can't tell.
        """
        while True:
            call = self._video.GetModel.future(video_pb2.GetModelRequest(), timeout=_ANSWER_S)
            try:
                with run.calling(call):
                    self._known_video = answer = call.result()
            except grpc.RpcError as error:
                patience.call_failed(error, began=False)
            except StalledError:
                patience.stalled()
            else:
                patience.heard()
                return answer

    def known_video(self) -> video_pb2.GetModelResponse | None:
        """The video model as it was last told; asks once, briefly, when it never was."""
        if self._known_video is None:
            try:
                self._known_video = self._video.GetModel(video_pb2.GetModelRequest(), timeout=_FIRST_ANSWER_S)
            except grpc.RpcError:
                return None  # the film is checked again when its script is written
        return self._known_video


def check_against_model(checks: Checks, settings: pb.FilmSettings, model: video_pb2.GetModelResponse) -> None:
    """Adds what the video model can't do of what is wanted."""
    if settings.HasField("width_px"):
        checks.between("settings.width_px", settings.width_px, 64, model.max_width_px)
    if settings.HasField("height_px"):
        checks.between("settings.height_px", settings.height_px, 64, model.max_height_px)
    for trade in settings.trades:
        checks.one_of("settings.trades", trade, model.trades)
    checks.require(
        not (settings.continuous and model.words_only),
        "settings.continuous",
        "is set; the video model renders from words alone and can't start from a picture",
    )
    fps = settings.fps or model.default_fps
    shortest, longest = script.seconds_range(fps, model.max_frame_count)
    if settings.HasField("scene_seconds"):
        wanted = settings.scene_seconds
        checks.require(
            shortest <= wanted <= longest,
            "settings.scene_seconds",
            f"is {wanted}, which at {fps} frames a second is {wanted * fps} frames; the video model makes clips of"
            f" 2 to {model.max_frame_count} frames",
        )
    else:
        checks.require(
            shortest <= min(longest, script.MAX_SECONDS),
            "settings.fps",
            f"is {fps}; the video model makes clips of 2 to {model.max_frame_count} frames, which is no whole second",
        )


def render_plan(settings: pb.FilmSettings, model: video_pb2.GetModelResponse) -> RenderPlan:
    """What is wanted, the model's defaults where nothing is."""
    return RenderPlan(
        settings.width_px or model.default_width_px,
        settings.height_px or model.default_height_px,
        settings.fps or model.default_fps,
    )
