"""Weights from safetensors into a model on its device: each tensor is read once, straight to where it stays.

Knows no tokens. Does not go through `from_pretrained`, which looks for adapters, quantisers and kernels that a folder
may name; here a folder can give numbers and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfreel_llm.checkpoint import Checkpoint, CheckpointError
from halfreel_llm.device_reader import read_tensors

_NAMED_AT_MOST = 3  # names shown in an error


def load_model(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Builds the model and fills it.

    The network is built without memory, then every parameter becomes the very tensor that was read, so that the peak is
    one copy of the weights; a tensor of another dtype is converted on the device, one at a time.

    Args:
        checkpoint: What to load.
        device: Where the weights go.
        dtype: The arithmetic.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A file is damaged, or tensors are missing, unknown or of the wrong shape.
    """
    try:
        with torch.device("meta"):
            model = checkpoint.architecture.model_class(checkpoint.config)
    except Exception as error:  # any value of a config.json ends up here
        raise CheckpointError(
            f"model {checkpoint.model_id}: its config.json describes no network: {type(error).__name__}: {error}"
        ) from None
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.weight_files:
        try:
            for name, tensor in _read_file(file, device):
                tensors.update(_read_tensor(checkpoint, name, tensor, dtype, wanted))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"model {checkpoint.model_id}: {file.name} is damaged: {error}") from None
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"model {checkpoint.model_id}: {len(missing)} tensors are missing, such as {missing[:_NAMED_AT_MOST]}"
        )
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    _recompute_rotary(model, device)
    return model.eval().requires_grad_(False)


def _read_file(file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt", device="cpu") as opened:  # checks the header, whoever reads on
        if device.type == "cuda":
            yield from read_tensors(file, device)
            return
        for name in opened.keys():  # noqa: SIM118 - not a dict
            yield name, opened.get_tensor(name)


def _read_tensor(
    checkpoint: Checkpoint, name: str, tensor: Tensor, dtype: torch.dtype, wanted: dict[str, torch.Size]
) -> dict[str, Tensor]:
    try:
        parameters = dict(checkpoint.architecture.convert_weight(name, tensor.to(dtype), checkpoint.config))
    except (KeyError, RuntimeError):  # RuntimeError: it doesn't split into the sizes of the config
        raise CheckpointError(f"model {checkpoint.model_id}: tensor {name!r} doesn't fit its config.json") from None
    for target, values in parameters.items():
        if target not in wanted:
            if target == "lm_head.weight":  # stored although it is tied to the embedding
                return {}
            raise CheckpointError(f"model {checkpoint.model_id}: it has an unknown tensor {name!r}")
        if values.shape != wanted[target]:
            raise CheckpointError(
                f"model {checkpoint.model_id}: tensor {name!r} has the shape {tuple(values.shape)}; "
                f"its config.json means {tuple(wanted[target])}"
            )
    return parameters


def _recompute_rotary(model: PreTrainedModel, device: torch.device) -> None:
    """Gives the rotary frequencies memory: they follow from the config and are in no checkpoint."""
    rotary: nn.Module = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(device)
    homeless = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if homeless:
        raise CheckpointError(f"{type(model).__name__} has buffers that no checkpoint holds: {homeless}")
