"""Runs the doctors of services in one process, one after the other: the libraries they share are imported once.

    python -m halfreel_client.doctor.asker '[["halfreel_llm.doctor", "--model", "pocket"], ...]'

Prints one JSON line for each: {"code", "output", "errors"}. A process of its own, because doctors may import torch,
which the client never does. It does not know what they find.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Sequence


def main() -> None:
    """Answers the questions in order, each as soon as its answer is there."""
    for module, *flags in json.loads(sys.argv[1]):
        print(json.dumps(_answer(module, flags)), file=sys.__stdout__, flush=True)


def _answer(module: str, flags: Sequence[str]) -> dict[str, object]:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = importlib.import_module(module).main([*flags, "--json"])
        except SystemExit as ended:  # settings that are wrong
            code = ended.code
        except Exception as error:  # one doctor that breaks is no reason to hear nothing of the others
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
            code = 1
    return {"code": code, "output": output.getvalue(), "errors": errors.getvalue()}


if __name__ == "__main__":
    main()
