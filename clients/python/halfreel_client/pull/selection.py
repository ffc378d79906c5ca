"""Which files of a model's repository are fetched: safetensors, configurations and tokenizers; it makes no call."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKENIZER_FILES = frozenset({"tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"})
_PIPELINE_INDEX = "model_index.json"
# model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors, model.fp16-00001-of-00002.safetensors
_WEIGHTS = re.compile(r"(?P<stem>.+?)(?P<fp16>\.fp16)?(?:-\d{5}-of-\d{5})?(?P<late>\.fp16)?\.safetensors")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: its path in the repository.
        size_bytes: as the hub tells it.
        sha256: of a large file; empty for a file that the hub keeps in git itself.
        git_id: git's own hash of the file, or of the note that stands for a large one.
    """

    name: str
    size_bytes: int
    sha256: str
    git_id: str


class NoSafetensorsError(Exception):
    """The repository holds no weights that may be opened here."""


def select(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files that a server would open, in order of their names.

    A pipeline's root holds the same weights once more in one file, which is left out; where a part has weights in
    FP16 of its own, only these are taken. Of another model only the root is looked at.

    Raises:
        NoSafetensorsError: there are no such weights.
    """
    found = {file.name: file for file in files}
    is_pipeline = _PIPELINE_INDEX in found
    wanted = [file for file in found.values() if _is_wanted(file.name, is_pipeline)]
    half = {_part_of(file.name) for file in wanted if _is_fp16(file.name)}
    chosen = [file for file in wanted if _is_fp16(file.name) or _part_of(file.name) not in half]
    if not any(file.name.endswith(".safetensors") for file in chosen):
        raise NoSafetensorsError
    return sorted(chosen, key=lambda file: file.name)


def _is_wanted(name: str, is_pipeline: bool) -> bool:
    folder, _, base = name.rpartition("/")
    if base.startswith(".") or folder.count("/") > 0:
        return False
    if base.endswith(".safetensors"):
        return bool(folder) == is_pipeline
    return (base.endswith(".json") or base in _TOKENIZER_FILES) and (is_pipeline or not folder)


def _is_fp16(name: str) -> bool:
    match = _WEIGHTS.fullmatch(name)
    return match is not None and bool(match["fp16"] or match["late"])


def _part_of(name: str) -> str | None:
    """The part of a model that a file of weights belongs to, whatever its precision; None for other files."""
    match = _WEIGHTS.fullmatch(name)
    return match["stem"] if match else None
