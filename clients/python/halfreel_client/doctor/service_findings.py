"""What each model server says of this machine: their own doctors, run in a process, for they alone may import torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halfreel_client.display.printable import printable
from halfreel_client.doctor import asker
from halfreel_client.doctor.findings import Finding
from halfreel_client.pull.default_models import repo_id_of

# Importing torch from a cold disk takes its time.
_TIMEOUT_S = 180.0


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
    asked = json.dumps([[f"halfreel_{item.service}.doctor", *item.flags] for item in questions])
    command = [sys.executable, "-m", asker.__name__, asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as late:
        answers, why = _lines(late.stdout), f"did not answer within {_TIMEOUT_S:.0f} s"
    else:
        answers, why = _lines(done.stdout), f"ended with code {done.returncode}"
    findings = []
    for number, question in enumerate(questions):
        findings += _heard(question, answers[number]) if number < len(answers) else [_silent(question, why)]
    return findings


def _lines(output: str | bytes | None) -> list[dict[str, Any]]:
    """The answers that came."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def _heard(question: _Question, answer: dict[str, Any]) -> list[Finding]:
    try:
        return _read(question, json.loads(answer["output"]))
    except (ValueError, KeyError, TypeError):
        # Settings that are wrong are told in one line on stderr, as by the server itself.
        said = str(answer["errors"]).strip().splitlines()
        return [_silent(question, said[-1] if said else f"ended with code {answer['code']}")]


def _read(question: _Question, told: dict[str, object]) -> list[Finding]:
    checks = told["checks"]
    assert isinstance(checks, Sequence)
    return [
        Finding(question.group, str(item["name"]), bool(item["ok"]), printable(str(item["detail"])), question.needed)
        for item in checks
    ]


def _silent(question: _Question, said: str) -> Finding:
    return Finding(question.group, "doctor", False, printable(said), question.needed)
