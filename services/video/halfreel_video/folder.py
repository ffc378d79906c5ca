"""A diffusers model folder: found, checked against a list of allowed classes, and described.

Reads JSON only; no weights, no pickle and no Python file beside them is ever opened. Knows nothing of torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfreel_runtime.errors import FailedPrecondition, NotFound

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LARGEST_JSON_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Family:
    """A pipeline class that is allowed, the classes of its parts, and the stems of their weight files.

    `absent` names parts and settings of the pipeline that a folder must not have. `fp16` is false where FP16 is known
    to give frames without numbers, which would be black.
    """

    pipeline: str
    parts: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, str]
    pocket_name: str
    absent: tuple[str, ...] = ()
    fp16: bool = True


_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
_TRANSFORMERS_WEIGHTS = "model"

SVD = Family(
    pipeline="StableVideoDiffusionPipeline",
    parts={
        "vae": ("AutoencoderKLTemporalDecoder",),
        "image_encoder": ("CLIPVisionModelWithProjection",),
        "unet": ("UNetSpatioTemporalConditionModel",),
        "scheduler": ("EulerDiscreteScheduler",),
        "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast"),
    },
    weights={"vae": _DIFFUSERS_WEIGHTS, "image_encoder": _TRANSFORMERS_WEIGHTS, "unet": _DIFFUSERS_WEIGHTS},
    pocket_name="svd",
)

KEYFRAME = Family(
    pipeline="StableDiffusionPipeline",
    parts={
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "unet": ("UNet2DConditionModel",),
        "scheduler": (
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LCMScheduler",
            "PNDMScheduler",
            "UniPCMultistepScheduler",
        ),
    },
    weights={"vae": _DIFFUSERS_WEIGHTS, "text_encoder": _TRANSFORMERS_WEIGHTS, "unet": _DIFFUSERS_WEIGHTS},
    pocket_name="keyframe",
)


# Text to video. The parts and the two settings of Wan 2.1; the second transformer of Wan 2.2 and its other VAE are
# another arithmetic, and refused.
WAN = Family(
    pipeline="WanPipeline",
    parts={
        "vae": ("AutoencoderKLWan",),
        "text_encoder": ("UMT5EncoderModel", "T5EncoderModel"),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
        "transformer": ("WanTransformer3DModel",),
        "scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    },
    weights={"vae": _DIFFUSERS_WEIGHTS, "text_encoder": _TRANSFORMERS_WEIGHTS, "transformer": _DIFFUSERS_WEIGHTS},
    pocket_name="",
    absent=("transformer_2", "boundary_ratio", "expand_timesteps"),
    fp16=False,  # its text encoder, of the T5 family, passes 65,504
)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that passed every check.

    `classes` names the class of each part; `metadata` is what the optional file halfreel.json says of defaults.
    """

    path: Path
    model_id: str
    revision: str
    family: Family
    classes: Mapping[str, str]
    metadata: Mapping[str, float]

    def variant(self, part: str, *, prefer_fp16: bool) -> str | None:
        """Tells which weights of a part to load: "fp16" or None, the plain ones.

        A folder may hold either or both; both give the same result in FP16, and the FP16 files are half as large.
        """
        present = [variant for variant in ("fp16", None) if self.weight_files(part, variant)]
        return "fp16" if present == ["fp16"] or (prefer_fp16 and "fp16" in present) else None

    def weight_files(self, part: str, variant: str | None) -> tuple[Path, ...]:
        """Returns the safetensors files of a part and variant, all shards of them; empty when there are none."""
        stem, infix = self.family.weights[part], f".{variant}" if variant else ""
        single = self.path / part / f"{stem}{infix}.safetensors"
        if single.is_file():
            return (single,)
        index = self.path / part / f"{stem}.safetensors.index{infix}.json"
        if not index.is_file():
            return ()
        names = set(_read_json(index, self.model_id).get("weight_map", {}).values())
        if not names or not all(_is_safetensors_name(name) for name in names):
            raise refused(self.model_id, f"the index of its {part} names files that are not safetensors beside it")
        return tuple(self.path / part / name for name in sorted(names))

    def parameter_count(self) -> int:
        """Counts the parameters by the headers of the weight files; reads no weights."""
        from safetensors import safe_open

        count = 0
        for part in self.family.weights:
            for file in self.weight_files(part, self.variant(part, prefer_fp16=True)):
                with safe_open(file, framework="numpy") as tensors:
                    count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  # not a dict
        return count


def open_folder(model: str, family: Family) -> ModelFolder:
    """Finds a model and checks its folder.

    Args:
        model: "pocket", a local folder, or a hub id, which is looked up in the local cache only.
        family: the pipeline class that it must be.

    Raises:
        NotFound: MODEL_NOT_FOUND.
        FailedPrecondition: MODEL_REFUSED; a class is not on the list, or there are no safetensors.
    """
    path, model_id, revision = _find(model, family)
    index = _read_json(path / "model_index.json", model_id)
    if index.get("_class_name") != family.pipeline:
        raise refused(model_id, f"its class is {index.get('_class_name')!r}; it must be {family.pipeline!r}")
    classes = {}
    for part, allowed in family.parts.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name not in allowed:
            raise refused(model_id, f"the class of its {part} is {name!r}; it must be one of {', '.join(allowed)}")
        classes[part] = name
    for name in family.absent:
        if index.get(name) not in (None, False, [None, None]):
            raise refused(model_id, f"it has a {name}, which is not supported")
    folder = ModelFolder(path, model_id, revision, family, classes, _metadata(path, model_id))
    for part in family.weights:
        if not folder.weight_files(part, "fp16") and not folder.weight_files(part, None):
            raise refused(model_id, f"its {part} has no safetensors weights, and no other kind is ever opened")
    return folder


def is_text_to_video(model: str) -> bool:
    """Tells whether a model makes clips from words alone; also of one that does not exist, which is told later."""
    if model == "pocket":
        return False
    try:
        path, model_id, _ = _find(model, WAN)
        return _read_json(path / "model_index.json", model_id).get("_class_name") == WAN.pipeline
    except (NotFound, FailedPrecondition):
        return False


def _find(model: str, family: Family) -> tuple[Path, str, str]:
    """Returns the folder, the name to show, and the revision of a hub model."""
    if model == "pocket":
        import halfreel_pocket

        return halfreel_pocket.folder(family.pocket_name), "pocket", ""
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path.resolve(), path.resolve().name, ""
    if _HUB_ID.fullmatch(model) and not path.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            found = Path(snapshot_download(model, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            raise NotFound(
                f"model {model} is not in the local cache; fetch it with: halfreel pull {model}",
                reason="MODEL_NOT_FOUND",
            ) from None
        return found, model, found.name
    raise NotFound(
        f"model {model!r} is not a folder, a hub id such as owner/name, or 'pocket'", reason="MODEL_NOT_FOUND"
    )


def _read_json(path: Path, model_id: str) -> dict[str, Any]:
    """Reads one small JSON object of a model folder."""
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            raise refused(model_id, f"its {path.name} is over {_LARGEST_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise refused(model_id, f"it has no {path.name} that is readable JSON") from None
    if not isinstance(value, dict):
        raise refused(model_id, f"its {path.name} is not a JSON object")
    return value


def _metadata(path: Path, model_id: str) -> dict[str, float]:
    """Reads halfreel.json, where there is one: defaults that the model's author recommends, all numbers."""
    file = path / "halfreel.json"
    if not file.is_file():
        return {}
    metadata = _read_json(file, model_id)
    bad = [key for key, value in metadata.items() if not isinstance(value, int | float) or isinstance(value, bool)]
    if bad:
        raise refused(model_id, f"{bad[0]} in its halfreel.json is not a number")
    return metadata


def _is_safetensors_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def refused(model_id: str, why: str) -> FailedPrecondition:
    """Returns the error of a model that is not loaded, and why."""
    return FailedPrecondition(f"model {model_id} is refused: {why}", reason="MODEL_REFUSED")
