"""What one model server counts as its work goes on: predictions, shortages, stages, steps, tokens, frames, sleep.

The parts that do the work call it, from whichever thread; every call takes microseconds and none ever fails for what it
is told: a name that is none of the known ones is counted as "other". Every series is there from the start, at zero.
It does not know how the figures are shown (`metrics`), nor what the work is.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from halfreel_runtime.tracing import Attribute, exemplar, span

# Up to an hour: films are long.
DURATION_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
# A token takes 3 ms on a large GPU and a second on a small CPU; those of a whole film's script share one histogram.
TOKEN_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600, 3600)
# Around 1, where a prediction is right: 5 % off either way is told by an alert.
RATIO_BUCKETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1, 1.01, 1.03, 1.05, 1.1, 1.2, 1.5, 2)
# Seconds of work for a second of film: 1 is real time, an hour for a second is a CPU at full size.
REALTIME_BUCKETS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 3600)

VERDICTS = ("fits", "fits_alone", "cheaper_fits", "refused")
OTHER = "other"

PHASES = {"llm": ("load", "prefill", "decode"), "video": ("load", "keyframe", "encode", "denoise", "decode", "mux")}


class Instruments:
    """The counters of one model server.

    Args:
        service: llm or video.
        rungs: what this server gives up to go on when memory runs out, by name.
    """

    def __init__(self, service: str, *, rungs: Iterable[str] = ()) -> None:
        self.service = service
        self.registry = CollectorRegistry(auto_describe=False)
        self._phases = PHASES[service]
        self._rungs = tuple(rungs)
        self._ratio = self._histogram(
            "memory_prediction_ratio",
            "Measured peak of a phase by the peak that its plan predicted; 1 is a plan that was right.",
            RATIO_BUCKETS,
            "phase",
        )
        self._out_of_memory = self._counter(
            "out_of_memory", "Times that memory ran out, by what was at work, and whether the work went on.", "phase",
            "recovered",
        )  # fmt: skip
        self._rung = self._counter("rungs", "Steps that were taken to go on after memory ran out.", "rung")
        self._nan = self._counter("nan_detected", "Times that the model's numbers were not finite.")
        self._admissions = self._counter("admissions", "Requests whose memory was planned, by verdict.", "verdict")
        self._stage = self._histogram(
            "stage_duration_seconds", "How long a stage of a request took.", DURATION_BUCKETS_S, "stage"
        )
        self._cancel = self._histogram(
            "cancel_latency_seconds",
            "From a request that nobody waits for any more to the end of its work.",
            DURATION_BUCKETS_S,
        )
        self._queue = self._histogram(
            "queue_wait_seconds", "How long requests waited for their turn.", DURATION_BUCKETS_S
        )
        self._sleep = self._histogram(
            "sleep_duration_seconds",
            "How long it took to move the model's weights.",
            DURATION_BUCKETS_S,
            "direction",
        )
        self._turn = self._histogram(
            "turn_wait_seconds", "How long work waited for another server to leave the GPU.", DURATION_BUCKETS_S
        )
        self._model = Gauge(
            "halfreel_model_info",
            "The model that is served; always 1.",
            ("service", "model", "dtype", "device"),
            registry=self.registry,
        )
        if service == "llm":
            self._first_token = self._histogram(
                "time_to_first_token_seconds", "From the beginning of a reply to its first token.", TOKEN_BUCKETS_S
            )
            self._per_token = self._histogram(
                "time_per_output_token_seconds",
                "Mean time of a reply between two of its tokens.",
                TOKEN_BUCKETS_S,
            )
            self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read.")
            self._output_tokens = self._counter("output_tokens", "Tokens that were written.")
        else:
            self._step = self._histogram(
                "denoise_step_duration_seconds", "How long one denoising step took.", DURATION_BUCKETS_S
            )
            self._frames = self._counter("frames", "Frames of finished clips.")
            self._clip_seconds = self._counter("clip_seconds", "Seconds of finished clips, as they are watched.")
            self._realtime = self._histogram(
                "realtime_factor_ratio",
                "Seconds of work on a clip by its seconds as it is watched.",
                REALTIME_BUCKETS,
            )
        self._make_zeros()

    # Memory.

    def prediction(self, phase: str, predicted_bytes: int, measured_bytes: int) -> None:
        """A phase ended whose peak had been predicted; without a prediction (0) nothing is counted."""
        if predicted_bytes > 0:
            self._observe(self._ratio, measured_bytes / predicted_bytes, self._phase(phase))

    def admission(self, verdict: str) -> None:
        """A request's memory was planned: fits, fits_alone, cheaper_fits or refused."""
        self._count(self._admissions, verdict if verdict in VERDICTS else OTHER)

    def out_of_memory(self, phase: str, *, recovered: bool) -> None:
        """Memory ran out in a phase, and the work went on (`recovered`) or ended."""
        self._count(self._out_of_memory, self._phase(phase), str(recovered).lower())

    def rung(self, name: str) -> None:
        """Something was given up to go on, such as "decode_chunk_4": a value behind a known name is left out."""
        known = (rung for rung in self._rungs if name == rung or name.startswith(f"{rung}_"))
        self._count(self._rung, next(known, OTHER))

    def nan(self) -> None:
        """The model's numbers were not finite."""
        self._count(self._nan)

    # Time.

    @contextlib.contextmanager
    def stage(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> Iterator[None]:
        """A stage of a request, as a span of its trace too; one that failed or was cancelled is no sample."""
        began = time.monotonic()
        with span(name, attributes):
            yield
        self.stage_took(name, time.monotonic() - began)

    def stage_took(self, name: str, seconds: float) -> None:
        """A stage of a request ended; for where `stage` can't be put around it."""
        self._observe(self._stage, seconds, self._phase(name))

    def queued(self, seconds: float) -> None:
        """A request's turn came after this time."""
        self._observe(self._queue, seconds)

    def cancelled(self, seconds: float) -> None:
        """The work on a request ended this long after nobody waited for it any more."""
        self._observe(self._cancel, seconds)

    def slept(self, seconds: float) -> None:
        """The model's weights left the device."""
        self._observe(self._sleep, seconds, "sleep")

    def woke(self, seconds: float) -> None:
        """The model's weights are back on the device."""
        self._observe(self._sleep, seconds, "wake")

    def turn_waited(self, seconds: float) -> None:
        """Another server left the GPU after this time."""
        self._observe(self._turn, seconds)

    # The model and its results.

    def model(self, model: str, dtype: str, device: str) -> None:
        """The model is loaded."""
        self._model.clear()
        self._model.labels(self.service, model, dtype, device).set(1)

    def reply(self, *, prompt_tokens: int, output_tokens: int, first_token_s: float, decode_s: float) -> None:
        """A reply is finished.

        Args:
            prompt_tokens: tokens of the prompt.
            output_tokens: tokens of the reply.
            first_token_s: seconds from its beginning to its first token.
            decode_s: seconds from its first token to its last.
        """
        self._prompt_tokens.labels(self.service).inc(prompt_tokens)
        self._output_tokens.labels(self.service).inc(output_tokens)
        self._observe(self._first_token, first_token_s)
        if output_tokens > 1:
            self._observe(self._per_token, decode_s / (output_tokens - 1))

    def step(self, seconds: float) -> None:
        """A denoising step ended."""
        self._observe(self._step, seconds)

    def clip(self, *, frame_count: int, clip_s: float, work_s: float) -> None:
        """A clip is finished.

        Args:
            frame_count: frames of the clip.
            clip_s: its length as it is watched, in seconds.
            work_s: seconds of work on it, without waiting.
        """
        self._frames.labels(self.service).inc(frame_count)
        self._clip_seconds.labels(self.service).inc(clip_s)
        if clip_s > 0:
            self._observe(self._realtime, work_s / clip_s)

    # Below here nothing is for others.

    def _phase(self, name: str) -> str:
        return name if name in self._phases else OTHER

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"halfreel_{name}", text, ("service", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(
            f"halfreel_{name}", text, ("service", *labels), buckets=buckets, registry=self.registry
        )  # fmt: skip

    def _count(self, counter: Counter, *labels: str) -> None:
        counter.labels(self.service, *labels).inc(1, exemplar())

    def _observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        histogram.labels(self.service, *labels).observe(value, exemplar())

    def _make_zeros(self) -> None:
        """Makes every series that there can be; "other" mostly not, since it tells of a name that is missing here."""
        values: dict[Counter | Histogram, tuple[tuple[str, ...], ...]] = {
            self._ratio: (self._phases,),
            self._out_of_memory: ((*self._phases, OTHER), ("true", "false")),
            self._rung: (self._rungs,),
            self._admissions: (VERDICTS,),
            self._stage: (self._phases[1:],),
            self._sleep: (("sleep", "wake"),),
        }
        plain = [self._nan, self._cancel, self._queue, self._turn]
        if self.service == "llm":
            plain += [self._first_token, self._per_token, self._prompt_tokens, self._output_tokens]
        else:
            plain += [self._step, self._frames, self._clip_seconds, self._realtime]
        for metric in plain:
            metric.labels(self.service)
        for metric, sets in values.items():
            for labels in itertools.product(*sets):
                metric.labels(self.service, *labels)
