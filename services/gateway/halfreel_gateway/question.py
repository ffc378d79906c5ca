"""What is asked of the language model for one film, over all drafts and calls.

It does not know how the model is reached, nor what becomes of the answers.
"""

from __future__ import annotations

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.llm.v1 import llm_pb2
from halfreel_gateway import script, seeds
from halfreel_gateway.failures import FilmFailedError
from halfreel_gateway.patience import Patience
from halfreel_gateway.running import StepRun
from halfreel_gateway.script import ScriptLimits
from halfreel_runtime.errors import RemoteError

MAX_DRAFT_COUNT = 3
# A token is seldom more than three characters of English; where it is less, the server says by how much we are off.
_PROMPT_BYTES_PER_TOKEN = 3
_FRAMING_TOKENS = 64
# Tokens that a character may take: the bytes of its UTF-8.
_TOKENS_PER_CHARACTER = 4


class Question:
    """The question of one film.

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

    def fit(self, context_token_count: int) -> None:
        """Takes what a context leaves for the answer, as far as can be told without the model's tokenizer."""
        prompt_bytes = len((script.INSTRUCTION + self._film.idea).encode())
        self.token_count = context_token_count - prompt_bytes // _PROMPT_BYTES_PER_TOKEN - _FRAMING_TOKENS

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
