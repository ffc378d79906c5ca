"""Text from elsewhere, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters: a model or a server may write what would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
