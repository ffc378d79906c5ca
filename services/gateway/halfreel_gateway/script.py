"""The script of a film: the question for the language model, the schema of its answer, and the answer's check.

It does not know how the model is reached. A model of any quality may answer: what is not a script is refused here.
"""

from __future__ import annotations

import json
import math
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halfreel.gateway.v1 import gateway_pb2 as pb

MAX_SCENE_COUNT = 8
MAX_SECONDS = 8
MAX_TITLE_CHARACTERS = 60
MAX_TEXT_CHARACTERS = 160
# Shorter, a caption says nothing: a model without room for this is told to be too small.
MIN_TEXT_CHARACTERS = 16

MOTIONS = {
    "still": pb.MOTION_STILL,
    "left": pb.MOTION_LEFT,
    "right": pb.MOTION_RIGHT,
    "up": pb.MOTION_UP,
    "down": pb.MOTION_DOWN,
    "toward": pb.MOTION_TOWARD,
}

INSTRUCTION = (
    "You write the script of a short film as JSON. Give it a title and its scenes. For each scene write the narration,"
    " the picture it begins with, how many seconds it lasts, and how it moves: still, left, right, up, down or toward."
)

# Characters of JSON around the strings, with the longest values: {"title":"","scenes":[]} and, for each scene,
# {"narration":"","picture":"","seconds":8,"motion":"toward"} with a comma.
_FRAME_CHARACTERS = len('{"title":"","scenes":[]}')
_SCENE_CHARACTERS = len('{"narration":"","picture":"","seconds":8,"motion":"toward"},')


@dataclass(frozen=True)
class ScriptLimits:
    """What a script may be.

    Attributes:
        scene_count: scenes that it must have; None leaves it to the model, up to MAX_SCENE_COUNT.
        min_seconds: the shortest scene, in seconds.
        max_seconds: the longest scene, in seconds.
        max_text_characters: of one narration or picture.
    """

    scene_count: int | None
    min_seconds: int
    max_seconds: int
    max_text_characters: int = MAX_TEXT_CHARACTERS

    @property
    def most_scenes(self) -> int:
        """The largest number of scenes that it may have."""
        return self.scene_count or MAX_SCENE_COUNT

    @property
    def most_characters(self) -> int:
        """The longest JSON that follows the schema, escapes not counted."""
        scene = _SCENE_CHARACTERS + 2 * self.max_text_characters
        return _FRAME_CHARACTERS + MAX_TITLE_CHARACTERS + self.most_scenes * scene

    def within(self, token_count: int) -> ScriptLimits | None:
        """These limits with texts short enough for a number of tokens, at one token a character.

        Returns:
            None when not even the shortest texts fit.
        """
        texts = token_count - _FRAME_CHARACTERS - MAX_TITLE_CHARACTERS - self.most_scenes * _SCENE_CHARACTERS
        longest = min(self.max_text_characters, texts // (2 * self.most_scenes))
        if longest < MIN_TEXT_CHARACTERS:
            return None
        return ScriptLimits(self.scene_count, self.min_seconds, self.max_seconds, longest)

    def shorter(self, draft: int) -> ScriptLimits:
        """The limits of a later draft: a model that was cut short is given half as much to say each time."""
        longest = max(MIN_TEXT_CHARACTERS, self.max_text_characters >> (draft - 1))
        return ScriptLimits(self.scene_count, self.min_seconds, self.max_seconds, longest)

    def schema(self) -> str:
        """The JSON schema that the model must follow; the order of the keys is part of it."""
        text = {"type": "string", "minLength": 1, "maxLength": self.max_text_characters}
        scene = {
            "narration": text,
            "picture": text,
            "seconds": {"type": "integer", "minimum": self.min_seconds, "maximum": self.max_seconds},
            "motion": {"type": "string", "enum": list(MOTIONS)},
        }
        scenes = {
            "type": "array",
            "items": _object(scene),
            "minItems": self.scene_count or 1,
            "maxItems": self.most_scenes,
        }
        title = {"type": "string", "minLength": 1, "maxLength": MAX_TITLE_CHARACTERS}
        return json.dumps(_object({"title": title, "scenes": scenes}), separators=(",", ":"))


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class NoScriptError(Exception):
    """The model's answer is not a script; the text says what is wrong with it."""


class ScriptScene(BaseModel):
    """One scene as the model wrote it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    narration: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    picture: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    seconds: Annotated[int, Field(ge=1, le=MAX_SECONDS)]
    motion: Literal["still", "left", "right", "up", "down", "toward"]


class Script(BaseModel):
    """Title and scenes, as the model wrote them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARACTERS)]
    scenes: Annotated[list[ScriptScene], Field(min_length=1, max_length=MAX_SCENE_COUNT)]


def parse(text: str, limits: ScriptLimits) -> Script:
    """The script in a model's answer, with as many scenes as were asked for.

    Raises:
        NoScriptError: as `read`, or it has another number of scenes.
    """
    script = read(text)
    if limits.scene_count is not None and len(script.scenes) != limits.scene_count:
        raise NoScriptError(f"it has {len(script.scenes)} scenes; {limits.scene_count} were asked for")
    return script


def read(text: str) -> Script:
    """The script in a text, its words cleaned of control characters and outer white space.

    Raises:
        NoScriptError: it is no JSON, or not as the schema says, or a text of it is blank.
    """
    try:
        value = _cleaned(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise NoScriptError("the answer is no JSON") from error
    try:
        return Script.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise NoScriptError(f"{place}: {first['msg']}") from error


def _cleaned(value: Any) -> Any:
    """The same JSON value with every string cleaned."""
    if isinstance(value, dict):
        return {key: _cleaned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    return clean_text(value) if isinstance(value, str) else value


def clean_text(text: str) -> str:
    """The text on one line: control characters and lone surrogates (JSON can hold them, UTF-8 can't) become spaces."""
    return " ".join("".join(" " if unicodedata.category(each) in {"Cc", "Cs"} else each for each in text).split())


def question(idea: str, scene_count: int | None) -> str:
    """What the model is asked; the instruction goes before it."""
    return f"Idea: {idea}\nScenes: {scene_count or 'any'}"


def seconds_range(fps: int, max_frame_count: int) -> tuple[int, int]:
    """The shortest and the longest scene that the video model can make, in whole seconds.

    Args:
        fps: frames a second.
        max_frame_count: of the longest clip; the shortest has two frames.

    Returns:
        The first is larger than the second when no whole second fits.
    """
    return math.ceil(2 / fps), max_frame_count // fps
