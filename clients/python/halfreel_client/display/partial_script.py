"""What can be read of a script while its JSON is still being written."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import from_json


@dataclass(frozen=True, slots=True)
class PartialScript:
    """The title and the scenes' narrations so far; the last of them may break off."""

    title: str = ""
    narrations: tuple[str, ...] = ()


def read_partial(text: str) -> PartialScript:
    """The script that `text` begins; empty when it begins none. Never raises: the text is a model's own."""
    try:
        value = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return PartialScript()
    if not isinstance(value, dict):
        return PartialScript()
    scenes = value.get("scenes")
    return PartialScript(
        _text(value.get("title")),
        tuple(_text(scene.get("narration")) for scene in scenes if isinstance(scene, dict))
        if isinstance(scenes, list)
        else (),
    )


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
