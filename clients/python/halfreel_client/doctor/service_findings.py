"""What each model server says of this machine: its own doctor, run as a process, for it alone may import torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from halfreel_client.display.printable import printable
from halfreel_client.doctor.findings import Finding
from halfreel_client.pull.default_models import repo_id_of

# Importing torch from a cold disk takes its time.
_TIMEOUT_S = 180.0
# Each of them holds all of torch.
_CONCURRENCY = 2


@dataclass(frozen=True)
class _Question:
    """One run of one server's doctor."""

    group: str
    service: str
    flags: tuple[str, ...]
    needed: bool


_QUESTIONS = (
    _Question("llm", "llm", (), True),
    _Question("video", "video", (), True),
    _Question("large llm", "llm", ("--model", repo_id_of("llm")), False),
    _Question(
        "large video", "video", ("--model", repo_id_of("video"), "--keyframe-model", repo_id_of("keyframe")), False
    ),
)


def service_findings() -> list[Finding]:
    """Asks every model server that is installed: as it is configured here, and for the large default models."""
    questions = [item for item in _QUESTIONS if importlib.util.find_spec(f"halfreel_{item.service}") is not None]
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        return [finding for findings in pool.map(_ask, questions) for finding in findings]


def _ask(question: _Question) -> list[Finding]:
    command = [sys.executable, "-m", f"halfreel_{question.service}.doctor", "--json", *question.flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return [_silent(question, f"did not answer within {_TIMEOUT_S:.0f} s")]
    try:
        return _read(question, json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        # Settings that are wrong are told in one line on stderr, as by the server itself.
        said = done.stderr.strip().splitlines()
        return [_silent(question, said[-1] if said else f"ended with code {done.returncode}")]


def _read(question: _Question, told: dict[str, object]) -> list[Finding]:
    checks = told["checks"]
    assert isinstance(checks, Sequence)
    return [
        Finding(question.group, str(item["name"]), bool(item["ok"]), printable(str(item["detail"])), question.needed)
        for item in checks
    ]


def _silent(question: _Question, said: str) -> Finding:
    return Finding(question.group, "doctor", False, printable(said), question.needed)
