"""Reads a script while it is written: tells what there is of it each time that a scene is whole.

It does not know what is done with the scenes. What it is given may be anything: where no script begins, it tells
nothing, and the check of the whole answer says why.
"""

from __future__ import annotations

from halfreel_gateway import script
from halfreel_gateway.script import NoScriptError, Script

# {"title":"...","scenes":[{ is three brackets deep: the script, its scenes, one scene.
_SCENE_DEPTH = 3
_REST = "]}"


class ScriptReader:
    """One answer of the language model, piece by piece."""

    def __init__(self) -> None:
        self._text = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        """All that came."""
        return self._text

    def take(self, piece: str) -> Script | None:
        """The script as far as it is whole, when the piece ends a scene of it; else None."""
        scene_end = None
        for place, character in enumerate(piece, len(self._text) + 1):
            if self._ends_scene(character):
                scene_end = place
        self._text += piece
        if scene_end is None:
            return None
        try:
            return script.read(self._text[:scene_end] + _REST)
        except NoScriptError:
            return None

    def _ends_scene(self, character: str) -> bool:
        """Follows strings and brackets; whether the character closes an object that may be a scene."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return character == "}" and self._depth == _SCENE_DEPTH - 1
        return False
