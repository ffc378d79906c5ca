"""Has the language model write a film's script, and stores each scene of it as soon as it is whole.

It does not know workflows: it may be killed and run again at any moment, and then finds what it stored before. A scene
that is stored keeps its words, whatever a later answer says in its place: it may be at work already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2
from halfreel_gateway import films, script, seeds
from halfreel_gateway.announcer import Announcer
from halfreel_gateway.change import FilmChange, SceneRecord
from halfreel_gateway.failures import FilmEndedError, FilmFailedError
from halfreel_gateway.models import Models, RenderPlan, check_against_model, render_plan
from halfreel_gateway.patience import Patience
from halfreel_gateway.question import MAX_DRAFT_COUNT, Question
from halfreel_gateway.running import RunningSteps, StalledError, StepRun
from halfreel_gateway.script import NoScriptError, Script, ScriptLimits
from halfreel_gateway.script_reader import ScriptReader
from halfreel_gateway.store import FilmStore
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import InvalidArgument, error_from_status

# Of one answer; the schema's longest script is a tenth of it.
_MAX_ANSWER_CHARACTERS = 65_536

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What is known of a film before its script is written.

    Attributes:
        accepted_s: when the film was accepted, in seconds since 1970.
        plan: what all clips have in common.
        max_frame_count: frames of the longest clip that the video model makes.
    """

    accepted_s: int
    plan: RenderPlan
    max_frame_count: int

    def as_json(self) -> dict[str, Any]:
        """As the workflow keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Preparation:
        """As the workflow kept it."""
        return cls(kept["accepted_s"], RenderPlan(**kept["plan"]), kept["max_frame_count"])


@dataclass(frozen=True)
class _Answer:
    text: str
    finish_reason: llm_pb2.FinishReason.ValueType
    phase_peaks: Sequence[gpu_pb2.PhasePeak]


class ScriptWriter:
    """Writes scripts.

    Args:
        store: of films.
        running: ends this work with its film.
        announcer: told the text as it comes.
        models: asked what the models can do.
        llm: channel to the language model servers.
    """

    def __init__(
        self, store: FilmStore, running: RunningSteps, announcer: Announcer, models: Models, llm: grpc.Channel
    ) -> None:
        self._store = store
        self._running = running
        self._announcer = announcer
        self._models = models
        self._llm = llm_pb2_grpc.LlmServiceStub(llm)

    def prepare(self, film_id: str) -> Preparation:
        """Begins the film: what its clips will have in common.

        Raises:
            FilmFailedError: the video model can't do what is wanted.
            FilmEndedError: the film has ended.
        """
        with self._running.step(film_id, calls_server=True) as run:
            film = self._begin(film_id)
            if film.state == pb.Film.STATE_QUEUED:
                with self._store.change(film_id) as change:
                    change.enter(pb.Film.STATE_WRITING_SCRIPT)
            video = self._models.video(run, Patience(run, self._announcer, "video"))
            _check(film.settings, video)
            return Preparation(film.create_time.seconds, render_plan(film.settings, video), video.max_frame_count)

    def write(self, film_id: str, preparation: Preparation) -> None:
        """Stores the film's scenes, unless all are stored already.

        Raises:
            FilmFailedError: the film can't be made.
            FilmEndedError: the film has ended.
        """
        with self._running.step(film_id, calls_server=True) as run:
            film = self._begin(film_id)
            if film.state > pb.Film.STATE_WRITING_SCRIPT:
                return
            began_s = time.monotonic()
            limits = _limits(film.settings, preparation.plan.fps, preparation.max_frame_count)
            written, answer = self._draft(run, film, limits)
            with self._store.change(film_id) as change:
                if change.film.state > pb.Film.STATE_WRITING_SCRIPT:
                    return  # stored by a run of this step that was taken for dead
                _add_scenes(change, written)
                change.film.script_duration.CopyFrom(films.duration(time.monotonic() - began_s))
                change.film.script_phase_peaks.extend(answer.phase_peaks)
                change.enter(pb.Film.STATE_RENDERING)

    def _begin(self, film_id: str) -> pb.Film:
        film = self._store.film(film_id).film
        if films.has_ended(film.state):
            raise FilmEndedError
        if film.waiting_reason:  # of a gateway that was killed; whether the film still waits shows now
            self._store.set_waiting(film_id, "")
        return film

    def _draft(self, run: StepRun, film: pb.Film, limits: ScriptLimits) -> tuple[Script, _Answer]:
        """Asks until the answer is a script, with another seed each time."""
        question = Question(run, film, Patience(run, self._announcer, "language model"))
        question.fit(self._models.llm(run, question.patience).context_token_count)
        for draft in range(1, MAX_DRAFT_COUNT + 1):
            answer = self._ask(question, limits.shorter(draft), draft)
            try:
                if answer.finish_reason != llm_pb2.FINISH_REASON_END_OF_TEXT:
                    raise NoScriptError("the answer was cut short")
                return script.parse(answer.text, limits), answer
            except NoScriptError as error:
                wrong = str(error)
                _logger.warning("no_script", extra={"film_id": film.film_id, "draft": draft, "wrong": wrong})
        raise FilmFailedError(
            grpc.StatusCode.INTERNAL,
            "SCRIPT_INVALID",
            f"The language model wrote no script in {MAX_DRAFT_COUNT} tries; say the idea in other words, choose"
            " another seed, or use a bigger model.",
            {"wrong": wrong},
        )

    def _ask(self, question: Question, limits: ScriptLimits, draft: int) -> _Answer:
        """One answer, however often the call must be made for it."""
        while True:
            question.attempt += 1
            request = question.request(limits, draft)
            began = False
            call = self._llm.Generate(request)
            try:
                with question.run.calling(call):
                    reader, completed = ScriptReader(), None
                    for event in call:
                        question.run.beat()
                        question.patience.heard()
                        if event.HasField("text_delta"):
                            began = True
                            self._take(question, reader, event.text_delta.text, limits)
                        elif event.HasField("completed"):
                            completed = event.completed
                        if len(reader.text) > _MAX_ANSWER_CHARACTERS:
                            break
                if completed is None:
                    return _Answer(reader.text, llm_pb2.FINISH_REASON_UNSPECIFIED, ())
                return _Answer(reader.text, completed.finish_reason, completed.phase_peaks)
            except grpc.RpcError as error:
                remote = error_from_status(error)
                if remote.reason != "PROMPT_TOO_LONG" or not question.corrected(remote):
                    question.patience.call_failed(error, began=began)
            except StalledError:
                question.patience.stalled()

    def _take(self, question: Question, reader: ScriptReader, text: str, limits: ScriptLimits) -> None:
        """Passes a piece of the answer on, and stores the scenes that it makes whole."""
        film_id = question.run.film_id
        delta = pb.WatchFilmResponse.ScriptDelta(text=text, attempt=question.attempt)
        self._announcer.live(film_id, pb.WatchFilmResponse(script_delta=delta))
        written = reader.take(text)
        if written is None or len(written.scenes) > limits.most_scenes:
            return
        with self._store.change(film_id) as change:
            if change.film.state == pb.Film.STATE_WRITING_SCRIPT:
                _add_scenes(change, written)


def _add_scenes(change: FilmChange, written: Script) -> None:
    """Adds the scenes that are not stored yet."""
    film = change.film
    film.title = film.title or written.title
    for index, each in enumerate(written.scenes[len(change.scenes) :], len(change.scenes)):
        scene = pb.Scene(
            index=index,
            state=pb.Scene.STATE_QUEUED,
            narration=each.narration,
            picture=each.picture,
            motion=script.MOTIONS[each.motion],
            requested_duration=films.duration(film.settings.scene_seconds or each.seconds),
            seed=seeds.scene_seed(film.settings.seed, index),
        )
        change.scenes.append(SceneRecord(scene))
        change.tell_scene(index)


def _check(settings: pb.FilmSettings, video: video_pb2.GetModelResponse) -> None:
    checks = Checks()
    check_against_model(checks, settings, video)
    try:
        checks.done()
    except InvalidArgument as error:
        raise FilmFailedError(error.code, error.reason, error.message) from error


def _limits(settings: pb.FilmSettings, fps: int, max_frame_count: int) -> ScriptLimits:
    shortest, longest = script.seconds_range(fps, max_frame_count)
    if settings.HasField("scene_seconds"):  # decided already, whatever the script says
        shortest, longest = 1, script.MAX_SECONDS
    return ScriptLimits(settings.scene_count or None, shortest, min(longest, script.MAX_SECONDS))
