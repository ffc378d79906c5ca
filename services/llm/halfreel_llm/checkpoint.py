"""A model folder: found, checked and described before anything of it is loaded.

Opens config.json, generation_config.json and the safetensors index or headers alone. What else lies in the folder
(.bin, .py, `auto_map`) is never opened.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import PreTrainedConfig

from halfreel_llm.architectures import ARCHITECTURES, Architecture
from halfreel_runtime.errors import FailedPrecondition

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class CheckpointError(FailedPrecondition):
    """A model can't be loaded; the text is for the operator and says what to do."""

    default_reason = "MODEL_UNUSABLE"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that can be loaded."""

    folder: Path
    model_id: str
    """ "pocket", a hub id, or the last part of a folder's name."""
    revision: str
    """The commit of a hub model, else empty."""
    architecture: Architecture
    config: PreTrainedConfig
    weight_files: tuple[Path, ...]
    generation_defaults: dict[str, Any]
    """The parsed generation_config.json; empty where there is none."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.weight_files)


def find_checkpoint(model: str) -> Checkpoint:
    """Finds a model and checks that it can be loaded.

    Args:
        model: "pocket", a local folder, or a hub id, looked up in the local cache only.

    Raises:
        CheckpointError: There is no such model here, or this server can't run it.
    """
    folder, model_id, revision = _find_folder(model)
    values = _read_json(folder / "config.json")
    model_type = values.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise CheckpointError(
            f"model {model_id}: model_type {model_type!r} is not on the list of this server: "
            + ", ".join(sorted(ARCHITECTURES))
        )
    if values.get("quantization_config"):
        raise CheckpointError(f"model {model_id}: its weights are quantised; use one stored in 16 or 32 bits")
    try:
        config = architecture.read_config(values)
    except KeyError as error:
        raise CheckpointError(f"model {model_id}: config.json lacks {error}") from None
    except (StrictDataclassError, TypeError, ValueError) as error:  # the config classes check their values
        why = " ".join(str(error).split())
        raise CheckpointError(f"model {model_id}: config.json is refused: {why}") from None
    generation_file = folder / "generation_config.json"
    return Checkpoint(
        folder=folder,
        model_id=model_id,
        revision=revision,
        architecture=architecture,
        config=config,
        weight_files=_find_weights(folder, model_id),
        generation_defaults=_read_json(generation_file) if generation_file.is_file() else {},
    )


def _find_folder(model: str) -> tuple[Path, str, str]:
    """Returns the folder, the model's name and its revision."""
    if model == "pocket":
        try:
            import halfreel_pocket
        except ModuleNotFoundError:
            raise CheckpointError("model pocket needs the package halfreel-pocket; install models/pocket") from None
        return Path(halfreel_pocket.folder("glm")), model, ""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, folder.resolve().name, ""
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"model {model}: there is no such folder")
    try:
        snapshot = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise CheckpointError(
            f"model {model}: neither a folder nor in the local cache; fetch it with `halfreel pull {model}`"
        ) from None
    return snapshot, model, snapshot.name


def _find_weights(folder: Path, model_id: str) -> tuple[Path, ...]:
    single, index = folder / _SINGLE_FILE, folder / _INDEX_FILE
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise CheckpointError(
            f"model {model_id}: no {_SINGLE_FILE} and no {_INDEX_FILE} in its folder; only safetensors are loaded"
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"model {model_id}: {_INDEX_FILE} has no weight_map")
    files = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"model {model_id}: {_INDEX_FILE} names {name!r}, which is no safetensors file beside it"
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"model {model_id}: {_INDEX_FILE} names {name}, which is missing; fetch it again")
        files.append(folder / name)
    return tuple(files)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.name} is missing in the model's folder {file.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} in the model's folder can't be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file.name} in the model's folder {file.parent} is not a JSON object")
    return values
