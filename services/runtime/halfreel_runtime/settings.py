"""Reads a server's settings: YAML file, then environment, then flags, the later winning.

A name that is not a setting is refused with the nearest right one, wherever it stands.
It does not know any setting: it reads the fields of the class it is given.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from halfreel_runtime.server_settings import CommaList, LocalPath, ModelServerSettings, ServerSettings

__all__ = [
    "CommaList",
    "LocalPath",
    "ModelServerSettings",
    "ServerSettings",
    "SettingDoc",
    "SettingsError",
    "describe",
    "load_settings",
    "read_settings",
]

S = TypeVar("S", bound=ServerSettings)

EXIT_USAGE = 2
_SERVICES = ("llm", "video", "gateway")
_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes", "_px": "pixels", "_ratio": "0 to 1"}


class SettingsError(Exception):
    """One line on what is wrong with the settings, for a person who starts a server."""


@dataclass(frozen=True)
class SettingDoc:
    """One setting, for `--help` and for the documentation."""

    name: str
    env: str
    flag: str
    type: str
    default: str
    description: str

    @property
    def unit(self) -> str:
        """The unit its name ends in, or nothing."""
        return next((unit for ending, unit in _UNITS.items() if self.name.endswith(ending)), "")


def describe(cls: type[ServerSettings], service: str) -> list[SettingDoc]:
    """Every setting of a service's class, in its order.

    Args:
        cls: the settings class.
        service: llm, video or gateway; names the environment variables.
    """
    return [
        SettingDoc(
            name,
            _prefix(service) + name.upper(),
            "--" + name.replace("_", "-"),
            _type_name(field.annotation),
            _default_text(field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for name, field in cls.model_fields.items()
    ]


def load_settings(cls: type[S], service: str, argv: list[str]) -> S:
    """The settings of a server process; prints help or one line on what is wrong, and exits, where it must.

    Args:
        cls: the settings class.
        service: llm, video or gateway.
        argv: the flags, without the program's name.

    Raises:
        SystemExit: 0 after --help, 2 after a mistake.
    """
    try:
        return read_settings(cls, service, argv, os.environ)
    except SettingsError as error:
        sys.stderr.write(f"halfreel-{service}: {error}\n")
        raise SystemExit(EXIT_USAGE) from None


def read_settings(cls: type[S], service: str, argv: list[str], environ: Mapping[str, str]) -> S:
    """As `load_settings`, with the environment given.

    Raises:
        SettingsError: a name or a value is wrong.
        SystemExit: 0 after --help.
    """
    docs = describe(cls, service)
    flags = {name: text for name, text in vars(_parser(service, docs).parse_args(argv)).items() if text is not None}
    variables = _from_environment(service, docs, environ)
    config = flags.pop("config", None) or variables.pop("config", None)
    variables.pop("config", None)
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}

    def take(values: Mapping[str, Any], name_of: Callable[[SettingDoc], str]) -> None:
        merged.update(values)
        origin.update({doc.name: name_of(doc) for doc in docs if doc.name in values})

    take(_from_yaml(Path(config), docs) if config else {}, lambda doc: f"{config}: {doc.name}")
    take(variables, lambda doc: doc.env)
    take(flags, lambda doc: doc.flag)
    try:
        return cls(**merged)
    except ValidationError as error:
        raise SettingsError(_told(error, origin)) from None


def _from_environment(service: str, docs: list[SettingDoc], environ: Mapping[str, str]) -> dict[str, Any]:
    prefix = _prefix(service)
    known = {doc.env: doc.name for doc in docs} | {f"{prefix}CONFIG": "config"}
    values = {}
    for name, text in environ.items():
        if name in known:
            values[known[name]] = text
        elif name.startswith(prefix) or _looks_like_ours(name, service):
            raise SettingsError(_unknown(name, known, "an environment variable of this server"))
    return values


def _looks_like_ours(name: str, service: str) -> bool:
    """Whether a variable is one of this service's with its service misspelt (HALFREEL_VIDOE_PORT)."""
    parts = name.split("_")
    if len(parts) < 3 or parts[0] != "HALFREEL" or parts[1].lower() in _SERVICES:
        return False
    return bool(difflib.get_close_matches(parts[1].lower(), [service], cutoff=0.75))


def _from_yaml(path: Path, docs: list[SettingDoc]) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"the settings file {path} is no YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"the settings file {path} must hold names and values, such as 'port: 7601'")
    known = [doc.name for doc in docs]
    for name in values:
        if name not in known:
            raise SettingsError(f"{path}: {_unknown(str(name), known, 'a setting')}")
    return values


class _Parser(argparse.ArgumentParser):
    """Reports a mistake by one line, and a misspelt flag with the nearest right one."""

    flags: Collection[str] = ()

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            raise SettingsError(_unknown(name, [*self.flags, "--config", "--help"], "a flag of this server"))
        return values


def _parser(service: str, docs: list[SettingDoc]) -> _Parser:
    parser = _Parser(
        prog=f"halfreel-{service}",
        usage=f"halfreel-{service} [--config FILE] [--NAME VALUE ...]",
        description=f"The {service} server of Halfreel.",
        epilog="A flag wins over the environment, and the environment over the YAML file.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=36, width=110),
    )
    parser.flags = [doc.flag for doc in docs]
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file of settings [environment: {_prefix(service)}CONFIG]"
    )
    group = parser.add_argument_group("settings")
    for doc in docs:
        unit = f", in {doc.unit}" if doc.unit else ""
        text = f"{doc.description} [default: {doc.default}{unit}; environment: {doc.env}]"
        group.add_argument(
            doc.flag,
            dest=doc.name,
            metavar="true|false" if doc.type == "bool" else doc.type if "|" in doc.type else doc.type.upper(),
            help=text.replace("%", "%%"),
            # A switch may stand alone: --preview is --preview true.
            nargs="?" if doc.type == "bool" else None,
            const="true" if doc.type == "bool" else None,
        )
    return parser


def _told(error: ValidationError, origin: Mapping[str, str]) -> str:
    """The first mistake of the values: where it stands, what it is, what it must be."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    message = first["msg"].removeprefix("Value error, ")
    return f"{origin.get(name, name)} is {first['input']!r}; {message[0].lower()}{message[1:]}"


def _unknown(name: str, known: Collection[str], what: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{name} is not {what}" + (f"; did you mean {near[0]}?" if near else "; --help lists them all")


def _prefix(service: str) -> str:
    return f"HALFREEL_{service.upper()}_"


def _type_name(annotation: Any) -> str:
    """A type as a person writes it: int, number, text, bool, path, list, or the words of a choice."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return _type_name(next(each for each in typing.get_args(annotation) if each is not type(None)))
    if typing.get_origin(annotation) in (tuple, list):
        return "list"
    return {float: "number", str: "text", Path: "path"}.get(annotation, getattr(annotation, "__name__", "text"))


def _default_text(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return ",".join(map(str, default)) or "none"
    return str(default) if str(default) else "none"
