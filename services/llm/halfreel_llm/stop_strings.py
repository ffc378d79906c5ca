"""Stop strings: ends a streamed reply before the first of them, and never lets a part of one out.

Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back text that may be the beginning of a stop string. One per reply."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Takes the strings; none of them is empty."""
        self._strings = tuple(strings)
        self._held = ""
        self.met = False
        """Whether a stop string has appeared; the reply is over."""

    def push(self, text: str) -> str:
        """Returns what can be shown of the text so far. The stop string that is complete first ends the reply."""
        if not self._strings:
            return text
        self._held += text
        starts = ((self._held.find(string), string) for string in self._strings)
        found = [(start + len(string), start) for start, string in starts if start >= 0]
        if found:
            _, start = min(found)
            self.met = True
            shown, self._held = self._held[:start], ""
            return shown
        keep = max((self._overlap(string) for string in self._strings), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Returns what was held back, at the end of a reply that met no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, string: str) -> int:
        """Returns the length of the longest end of the held text that begins the string."""
        longest = min(len(string) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(string[:size])), 0)
