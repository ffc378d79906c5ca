"""Has a video server render one scene, and stores its clip.

It does not know workflows: it may be killed and run again at any moment. The scene's seed decides the clip, so that
what is rendered again is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_gateway import films
from halfreel_gateway.announcer import Announcer
from halfreel_gateway.artifacts import CLIPS, Artifacts
from halfreel_gateway.clip_receiver import ClipReceiver, CorruptClipError, stage_name
from halfreel_gateway.failures import FilmEndedError, FilmFailedError
from halfreel_gateway.models import RenderPlan
from halfreel_gateway.patience import Patience
from halfreel_gateway.running import RunningSteps, StalledError, StepRun
from halfreel_gateway.store import FilmStore

# How much moves in a scene that the script calls still; the model's default is for moving ones.
STILL_MOTION_BUCKET = 20
# Of a scene, what is done once all denoising steps are.
_STEPS_SHARE = 0.9
# The database hears of a scene's progress so often at most.
_PROGRESS_EVERY_S = 1.0
# The steps of this process are woken at once; this is for a scene that another gateway has rendered.
_LOOK_EVERY_S = 1.0

CountAttempt = Callable[[str], None]


class SceneRenderer:
    """Renders scenes.

    Args:
        store: of films.
        running: ends this work with its film.
        announcer: told every step.
        artifacts: keeps the clips.
        video: channel to the video servers.
        count_attempt: told how every attempt ended: succeeded, failed or abandoned.
    """

    def __init__(
        self,
        store: FilmStore,
        running: RunningSteps,
        announcer: Announcer,
        artifacts: Artifacts,
        video: grpc.Channel,
        count_attempt: CountAttempt,
    ) -> None:
        self._store = store
        self._running = running
        self._announcer = announcer
        self._artifacts = artifacts
        self._video = video_pb2_grpc.VideoServiceStub(video)
        self._count_attempt = count_attempt

    def render(self, film_id: str, index: int, plan: RenderPlan) -> None:
        """Stores the scene's clip, unless it is there already.

        Raises:
            FilmFailedError: it can't be rendered.
            FilmEndedError: the film has ended.
        """
        with self._running.step(film_id, calls_server=True) as run:
            film = self._store.film(film_id).film
            if films.has_ended(film.state):
                raise FilmEndedError
            if film.scenes[index].state == pb.Scene.STATE_SUCCEEDED:
                return
            self._artifacts.require_room(0)
            patience = Patience(run, self._announcer, "video")
            image = self._first_picture(film, index, run)
            while not self._attempt(_Attempt(run, index), _request(film, film.scenes[index], plan, image), patience):
                film = self._store.film(film_id).film  # with the levers of the attempt that failed

    def _first_picture(self, film: pb.Film, index: int, run: StepRun) -> bytes:
        """The last frame of the scene before, in a continuous film, where that may be rendered again; else nothing.

        Raises:
            FilmFailedError: CLIP_CORRUPT; it is there no more.
            FilmEndedError: the film has ended.
        """
        if not film.settings.continuous or not index:
            return b""
        while film.scenes[index - 1].state != pb.Scene.STATE_SUCCEEDED:
            run.wait(_LOOK_EVERY_S)
            film = self._store.film(film.film_id).film
        before = film.scenes[index - 1]
        path, told = self._artifacts.last_frame(before.clip.sha256), before.last_frame
        if not self._artifacts.is_intact(path, told.sha256, told.size_bytes):
            raise FilmFailedError(
                grpc.StatusCode.DATA_LOSS,
                "CLIP_CORRUPT",
                f"The last frame of scene {index - 1} is damaged on the gateway's disk; check the disk, and make the"
                " film again.",
            )
        return path.read_bytes()

    def _attempt(self, attempt: _Attempt, request: video_pb2.GenerateRequest, patience: Patience) -> bool:
        """Whether the clip is stored; False when it may be tried again now."""
        request.preview = self._announcer.wants_previews(attempt.run.film_id)
        call = self._video.Generate(request)
        outcome = "abandoned"
        try:
            with attempt.run.calling(call):
                self._receive(attempt, request, call, patience)
            outcome = "succeeded"
        except grpc.RpcError as error:
            outcome = "failed"
            patience.call_failed(error, began=attempt.began)
        except StalledError:
            outcome = "failed"
            patience.stalled()
        except CorruptClipError as error:
            outcome = "failed"
            patience.try_failed(
                FilmFailedError(
                    grpc.StatusCode.DATA_LOSS,
                    "CLIP_CORRUPT",
                    f"The clip of scene {attempt.index} came damaged, again and again: {error}; see the video server.",
                )
            )
        finally:
            if attempt.began:
                self._count_attempt(outcome)
        return outcome == "succeeded"

    def _receive(
        self,
        attempt: _Attempt,
        request: video_pb2.GenerateRequest,
        events: Iterable[video_pb2.GenerateResponse],
        patience: Patience,
    ) -> None:
        film_id, index = attempt.run.film_id, attempt.index
        with self._artifacts.temporary(CLIPS) as path:
            with ClipReceiver(path) as receiver:
                for event in events:
                    attempt.run.beat()
                    if event.HasField("queued"):
                        continue
                    if event.HasField("plan"):
                        self._keep_plan(film_id, index, event.plan)
                        if event.plan.HasField("variant"):
                            _become(request, event.plan.variant)
                        continue
                    if not attempt.began:
                        attempt.began = True
                        patience.heard()
                        self._begin(film_id, index)
                    if event.HasField("video_chunk"):
                        receiver.take(event.video_chunk)
                    elif event.HasField("last_frame_chunk"):
                        receiver.take_last_frame(event.last_frame_chunk)
                    elif event.HasField("completed"):
                        receiver.complete(event.completed)
                    else:
                        self._tell(attempt, event)
            clip = receiver.checked(request)
            last_frame = self._publish_last_frame(receiver, clip) if request.last_frame else None
            self._artifacts.publish(path, self._artifacts.clip(clip.sha256))
        with self._store.change(film_id) as change:
            record = change.scenes[index]
            if record.scene.state == pb.Scene.STATE_SUCCEEDED:
                return  # another gateway took this one for dead, and was quicker
            record.succeed(clip)
            completed = receiver.completed
            if completed.HasField("levers") and not record.scene.HasField("levers"):  # of a server that tells no plan
                record.scene.levers.CopyFrom(completed.levers)
            record.scene.stages.extend(receiver.stage_figures())
            record.scene.phase_peaks.extend(completed.phase_peaks)
            record.scene.rungs.extend(completed.rungs)
            record.scene.trades.extend(completed.trades)
            if last_frame is not None:
                record.scene.last_frame.CopyFrom(last_frame)
            change.tell_scene(index)

    def _publish_last_frame(self, receiver: ClipReceiver, clip: pb.Artifact) -> pb.Picture:
        """Keeps the last frame beside its clip, before the clip is there."""
        frame = receiver.last_frame()
        with self._artifacts.temporary(CLIPS) as path:
            path.write_bytes(frame)
            self._artifacts.publish(path, self._artifacts.last_frame(clip.sha256))
        return pb.Picture(size_bytes=len(frame), sha256=receiver.completed.last_frame_sha256)

    def _keep_plan(self, film_id: str, index: int, plan: video_pb2.GenerateResponse.Planned) -> None:
        """Stores what decides the clip's bytes, so that it is rendered so again whenever it must be."""
        with self._store.change(film_id) as change:
            scene = change.scenes[index].scene
            if scene.HasField("levers"):
                return
            scene.levers.CopyFrom(plan.levers)
            if plan.HasField("variant"):
                scene.variant.CopyFrom(plan.variant)
                scene.variant.ClearField("plan")

    def _begin(self, film_id: str, index: int) -> None:
        with self._store.change(film_id) as change:
            change.scenes[index].begin()
            change.tell_scene(index)

    def _tell(self, attempt: _Attempt, event: video_pb2.GenerateResponse) -> None:
        """Passes on what the watchers see of the work, and keeps how far it is."""
        film_id, index = attempt.run.film_id, attempt.index
        kinds = pb.WatchFilmResponse
        if event.HasField("step"):
            step = event.step
            told = kinds.SceneStep(
                scene_index=index,
                step_index=step.index,
                step_count=step.count,
                duration=step.duration,
                remaining=step.remaining,
            )
            self._announcer.live(film_id, kinds(scene_step=told))
            if attempt.tells_progress():
                self._store.raise_scene_ratio(film_id, index, _STEPS_SHARE * step.index / max(step.count, 1))
        elif event.HasField("stage"):
            stage = kinds.SceneStage(scene_index=index, stage=stage_name(event.stage.stage))
            self._announcer.live(film_id, kinds(scene_stage=stage))
        elif event.HasField("preview"):
            preview = kinds.ScenePreview(scene_index=index, jpeg=event.preview.jpeg)
            self._announcer.live(film_id, kinds(scene_preview=preview))


class _Attempt:
    """One call for one scene.

    Attributes:
        began: whether a server was at work on it.
    """

    def __init__(self, run: StepRun, index: int) -> None:
        self.run = run
        self.index = index
        self.began = False
        self._told_s = 0.0

    def tells_progress(self) -> bool:
        """Whether the database should hear of progress now."""
        now_s = time.monotonic()
        if now_s - self._told_s < _PROGRESS_EVERY_S:
            return False
        self._told_s = now_s
        return True


def _become(request: video_pb2.GenerateRequest, variant: video_pb2.Variant) -> None:
    """The clip in the form in which it is rendered; a size of 0 is as it was asked for."""
    request.width_px = variant.width_px or request.width_px
    request.height_px = variant.height_px or request.height_px


def _request(film: pb.Film, scene: pb.Scene, plan: RenderPlan, image: bytes) -> video_pb2.GenerateRequest:
    request = video_pb2.GenerateRequest(
        request_id=f"{film.film_id}-scene-{scene.index}",
        prompt=scene.picture,
        width_px=plan.width_px,
        height_px=plan.height_px,
        fps=plan.fps,
        frame_count=scene.requested_duration.seconds * plan.fps,
        seed=scene.seed,
        image=image,
        trades=film.settings.trades,
        last_frame=film.settings.continuous,
    )
    settings = film.settings
    request.profile, request.allow_cheaper = settings.profile, settings.allow_cheaper
    if scene.HasField("levers"):
        request.levers.CopyFrom(scene.levers)
    if scene.HasField("variant"):
        _become(request, scene.variant)
    if settings.HasField("step_count"):
        request.step_count = settings.step_count
    if settings.HasField("guidance_scale"):
        request.guidance_scale = settings.guidance_scale
    if settings.HasField("motion_bucket"):
        request.motion_bucket = settings.motion_bucket
    elif scene.motion == pb.MOTION_STILL:
        request.motion_bucket = STILL_MOTION_BUCKET
    return request
