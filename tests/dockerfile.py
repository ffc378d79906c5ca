"""Reads a Dockerfile, and executes the steps of its first stage in a folder, without a container engine."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [argument for name, argument in self.steps if name == instruction]

    def one(self, instruction: str) -> str:
        (argument,) = self.all(instruction)
        return argument

    def words(self, instruction: str) -> list[str]:
        """An instruction in exec form, such as ENTRYPOINT ["python"]."""
        words = json.loads(self.one(instruction))
        assert isinstance(words, list)
        return words

    def pairs(self, instruction: str) -> dict[str, str]:
        """ENV or LABEL, all of them together."""
        return dict(word.split("=", 1) for argument in self.all(instruction) for word in shlex.split(argument))

    @property
    def health_check(self) -> list[str]:
        words = json.loads(self.one("HEALTHCHECK").split("CMD", 1)[1])
        assert isinstance(words, list)
        return words


def read_stages(path: Path) -> list[Stage]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for step in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if step.strip():
            instruction, argument = step.split(None, 1)
            if instruction == "FROM":
                base, *name = argument.split(" AS ")
                stages.append(Stage(base, name[0] if name else ""))
            else:
                stages[-1].steps.append((instruction, argument.strip()))
    return stages


def context_files() -> list[Path]:
    """The files that a build is given: what a clean checkout has, less what .dockerignore names; from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    return [Path(name) for name in listed if name and (ROOT / name).is_file() and not _ignored(name, rules)]


def _ignored(name: str, rules: list[str]) -> bool:
    ignored = False
    prefixes = ["/".join(name.split("/")[:count]) for count in range(1, name.count("/") + 2)]
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        if any(
            fnmatch.fnmatchcase(each.rsplit("/", 1)[-1] if anywhere != pattern else each, anywhere)
            and each.count("/") >= pattern.removeprefix("**/").count("/")
            for each in prefixes
        ):
            ignored = not rule.startswith("!")
    return ignored


def execute(stage: Stage, folder: Path) -> Path:
    """Executes the COPY and RUN steps of a building stage in `folder`; returns the environment that it makes.

    The stage's steps name paths under WORKDIR and $VIRTUAL_ENV alone, so that they can run anywhere.
    """
    files = context_files()
    environment = folder / "venv"
    environ = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "PATH", "LANG"))}
    environ |= {"HOME": str(folder), "VIRTUAL_ENV": str(environment)}
    here = folder / "build"
    here.mkdir()
    for instruction, argument in stage.steps:
        if instruction == "COPY":
            *sources, target = shlex.split(argument)
            for source in sources:
                _copy(files, source, here / target, target.endswith("/"))
        elif instruction == "RUN":
            assert not re.search(r"(?<![\w.}\"])/(?!dev/null)\w", argument), f"names a path of the image: {argument}"
            done = subprocess.run(
                ["sh", "-c", argument], cwd=here, env=environ, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"RUN {argument}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        elif instruction == "ARG":
            name, value = argument.split("=", 1)
            environ[name] = os.environ.get(name, value.strip('"'))
        else:
            assert instruction in ("ENV", "WORKDIR"), instruction
    return environment


def _copy(files: list[Path], source: str, target: Path, into: bool) -> None:
    found = [path for path in files if path.is_relative_to(source)]
    assert found, f"COPY {source}: the build context has no such file"
    for path in found:
        inner = path.relative_to(source)
        to = target / (path.name if into and str(inner) == "." else inner)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, to)
