"""Generates the Python code of the contract from the .proto files, or checks that the committed code is theirs.

It knows nothing of buf: linting and breaking changes are the Makefile's. The generators live in an environment of
their own (`.venv-gen`), because they need an older protobuf than the servers; generated code refuses a runtime older
than its generator, so the generator is pinned low and the runtime may be anything newer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(target: Path) -> list[Path]:
    """Writes the code of every .proto under `target`, and returns what it wrote, relative to `target`."""
    sources = sorted(path.relative_to(PROTOS) for path in PROTOS.glob("halfreel/*/v*/*.proto"))
    binaries = Path(sys.executable).parent
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}",
        f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}", f"--grpc_python_out={target}",
        f"--mypy_out={target}", f"--mypy_grpc_out={target}",
        *map(str, sources),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [source.with_name(source.stem + suffix) for source in sources for suffix in SUFFIXES]


def drift(fresh: Path, written: list[Path]) -> list[str]:
    """Names the committed files that differ from the fresh ones, are absent, or have no .proto any more."""
    stale = {path.relative_to(PROTOS) for suffix in SUFFIXES for path in PROTOS.glob(f"halfreel/*/v*/*{suffix}")} - set(
        written
    )
    differing = [
        path
        for path in written
        if not (PROTOS / path).exists() or (PROTOS / path).read_bytes() != (fresh / path).read_bytes()
    ]
    return [str(path) for path in sorted([*stale, *differing])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed code differs")
    if not parser.parse_args().check:
        for path in generate(PROTOS):
            (PROTOS / path).parent.joinpath("__init__.py").touch()
            (PROTOS / path).parent.parent.joinpath("__init__.py").touch()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        names = drift(Path(folder), generate(Path(folder)))
    for name in names:
        print(f"protos/{name} is not what its .proto generates: run 'make fix'", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
