"""Has the language model write a film's script, and stores its scenes.

It does not know workflows: it may be killed and run again at any moment, and then finds what it stored before.
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
from halfreel_gateway.change import SceneRecord
from halfreel_gateway.failures import FilmEndedError, FilmFailedError
from halfreel_gateway.models import Models, RenderPlan, check_against_model, render_plan
from halfreel_gateway.patience import Patience
from halfreel_gateway.running import RunningSteps, StalledError, StepRun
from halfreel_gateway.script import NoScriptError, Script, ScriptLimits
from halfreel_gateway.store import FilmStore
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import InvalidArgument, RemoteError, error_from_status

MAX_DRAFT_COUNT = 3
# A token is seldom more than three characters of English; where it is less, the server says by how much we are off.
_PROMPT_BYTES_PER_TOKEN = 3
_FRAMING_TOKENS = 64
# Tokens that a character may take: the bytes of its UTF-8.
_TOKENS_PER_CHARACTER = 4
# Of one answer; the schema's longest script is a tenth of it.
_MAX_ANSWER_CHARACTERS = 65_536

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenScript:
    """What the steps after the script need to know of it.

    Attributes:
        scene_count: scenes, all stored.
        accepted_s: when the film was accepted, in seconds since 1970.
        plan: what all clips have in common.
    """

    scene_count: int
    accepted_s: int
    plan: RenderPlan

    def as_json(self) -> dict[str, Any]:
        """As the workflow keeps it."""
        return asdict(self)


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

    def write(self, film_id: str) -> WrittenScript:
        """Stores the film's scenes, unless they are stored already.

        Raises:
            FilmFailedError: the film can't be made.
            FilmEndedError: the film has ended.
        """
        with self._running.step(film_id, calls_server=True) as run:
            film = self._begin(film_id)
            began_s = time.monotonic()
            video = self._models.video(run, Patience(run, self._announcer, "video"))
            _check(film.settings, video)
            plan = render_plan(film.settings, video)
            scene_count = len(film.scenes)
            if not scene_count:
                limits = _limits(film.settings, plan.fps, video.max_frame_count)
                written, answer = self._draft(run, film, limits)
                self._store_script(film, written, answer, time.monotonic() - began_s)
                scene_count = len(written.scenes)
            return WrittenScript(scene_count, film.create_time.seconds, plan)

    def _begin(self, film_id: str) -> pb.Film:
        film = self._store.film(film_id).film
        if films.has_ended(film.state):
            raise FilmEndedError
        if film.state == pb.Film.STATE_QUEUED:
            with self._store.change(film_id) as change:
                change.enter(pb.Film.STATE_WRITING_SCRIPT)
        if film.waiting_reason:  # of a gateway that was killed; whether the film still waits shows now
            self._store.set_waiting(film_id, "")
        return film

    def _draft(self, run: StepRun, film: pb.Film, limits: ScriptLimits) -> tuple[Script, _Answer]:
        """Asks until the answer is a script, with another seed each time."""
        question = _Question(run, film, Patience(run, self._announcer, "language model"))
        context = self._models.llm(run, question.patience).context_token_count
        prompt_bytes = len((script.INSTRUCTION + film.idea).encode())
        question.token_count = context - prompt_bytes // _PROMPT_BYTES_PER_TOKEN - _FRAMING_TOKENS
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

    def _ask(self, question: _Question, limits: ScriptLimits, draft: int) -> _Answer:
        """One answer, however often the call must be made for it."""
        while True:
            question.attempt += 1
            request = question.request(limits, draft)
            began = False
            call = self._llm.Generate(request)
            try:
                with question.run.calling(call):
                    text, completed = "", None
                    for event in call:
                        question.run.beat()
                        question.patience.heard()
                        if event.HasField("text_delta"):
                            began = True
                            text += event.text_delta.text
                            self._tell(question, event.text_delta.text)
                        elif event.HasField("completed"):
                            completed = event.completed
                        if len(text) > _MAX_ANSWER_CHARACTERS:
                            break
                if completed is None:
                    return _Answer(text, llm_pb2.FINISH_REASON_UNSPECIFIED, ())
                return _Answer(text, completed.finish_reason, completed.phase_peaks)
            except grpc.RpcError as error:
                remote = error_from_status(error)
                if remote.reason != "PROMPT_TOO_LONG" or not question.corrected(remote):
                    question.patience.call_failed(error, began=began)
            except StalledError:
                question.patience.stalled()

    def _tell(self, question: _Question, text: str) -> None:
        delta = pb.WatchFilmResponse.ScriptDelta(text=text, attempt=question.attempt)
        self._announcer.live(question.run.film_id, pb.WatchFilmResponse(script_delta=delta))

    def _store_script(self, film: pb.Film, written: Script, answer: _Answer, seconds: float) -> None:
        with self._store.change(film.film_id) as change:
            if change.scenes:
                return  # stored by a run of this step that was taken for dead
            change.film.title = written.title
            change.film.script_duration.CopyFrom(films.duration(seconds))
            change.film.script_phase_peaks.extend(answer.phase_peaks)
            for index, each in enumerate(written.scenes):
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
            change.enter(pb.Film.STATE_RENDERING)
            for index in range(len(written.scenes)):
                change.tell_scene(index)


class _Question:
    """What is asked of the language model for one film, over all drafts and calls.

    Attributes:
        attempt: calls made so far; watchers tell the pieces of one answer from those of the next by it.
        token_count: tokens that the answer may have.
    """

    def __init__(self, run: StepRun, film: pb.Film, patience: Patience) -> None:
        self.run = run
        self.patience = patience
        self.attempt = 0
        self.token_count = 0
        self._film = film
        self._was_corrected = False

    def request(self, limits: ScriptLimits, draft: int) -> llm_pb2.GenerateRequest:
        """The request for a draft.

        Raises:
            FilmFailedError: the model's context has no room for a script.
        """
        settings = self._film.settings
        fitting = limits.within(self.token_count)
        if fitting is None and self._was_corrected:
            raise FilmFailedError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "PROMPT_TOO_LONG",
                f"The idea leaves the language model {max(self.token_count, 0)} tokens for a script of"
                f" {limits.most_scenes} scenes, which is too few; shorten the idea or ask for fewer scenes.",
                {"left_token_count": str(max(self.token_count, 0))},
            )
        # Not known yet exactly: ask for what there may be; a server whose context it exceeds tells the figures.
        fitting = fitting or limits.shorter(MAX_DRAFT_COUNT)
        user = script.question(self._film.idea, limits.scene_count)
        request = llm_pb2.GenerateRequest(
            request_id=f"{self._film.film_id}-script-{draft}",
            messages=[
                llm_pb2.Message(role=llm_pb2.ROLE_SYSTEM, content=script.INSTRUCTION),
                llm_pb2.Message(role=llm_pb2.ROLE_USER, content=user),
            ],
            max_output_token_count=max(1, min(self.token_count, fitting.most_characters * _TOKENS_PER_CHARACTER)),
            seed=seeds.script_seed(settings.seed, draft),
            json_schema=fitting.schema(),
        )
        if settings.HasField("temperature"):
            request.temperature = settings.temperature
        return request

    def corrected(self, remote: RemoteError) -> bool:
        """Takes the exact room for the answer from a refusal; False when it was taken before, or is not told."""
        known = remote.metadata
        if self._was_corrected or not {"context_token_count", "prompt_token_count"} <= known.keys():
            return False
        self._was_corrected = True
        self.token_count = int(known["context_token_count"]) - int(known["prompt_token_count"])
        return True


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
