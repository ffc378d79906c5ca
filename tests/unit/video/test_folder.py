"""Model folders: what is loaded, what is refused, and what is never opened."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_video import svd_pipeline

from halfreel_runtime.errors import FailedPrecondition, NotFound
from halfreel_video.folder import KEYFRAME, SVD, open_folder
from halfreel_video.keyframe_defaults import KeyframeDefaults
from halfreel_video.loading import dtype_for, load_keyframe, load_svd, weight_figures

CPU = torch.device("cpu")

# Unpickled or imported, each of these would leave a file behind.
PICKLE = b"cbuiltins\nopen\n(V{path}\nVw\ntR."
PYTHON = "open({path!r}, 'w')\nclass Custom: pass\n"


@pytest.fixture
def copies(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "svd", tmp_path / "keyframe"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def opened() -> Any:
    """Names of all files opened since."""
    names: list[str] = []
    active = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active[0] and event == "open" and isinstance(arguments[0], str):
            names.append(arguments[0])

    sys.addaudithook(hook)  # for the life of the process, hence the switch
    yield names
    active[0] = False


def test_pickle_and_code_beside_the_weights_are_never_opened(
    copies: tuple[Path, Path], tmp_path: Path, opened: list[str]
) -> None:
    mark = tmp_path / "executed"
    for folder, family in zip(copies, (SVD, KEYFRAME), strict=True):
        (folder / "pipeline.py").write_text(PYTHON.format(path=str(mark)))
        index = folder / "model_index.json"
        edit(index, auto_map={"Pipeline": "pipeline.Custom"}, safety_checker=["custom", "Custom"])
        for part, stem in family.weights.items():
            for name in (f"{stem}.bin", f"{stem}.fp16.bin", "pytorch_model.bin"):
                (folder / part / name).write_bytes(PICKLE.replace(b"{path}", str(mark).encode()))
            (folder / part / "modeling.py").write_text(PYTHON.format(path=str(mark)))
            edit(folder / part / "config.json", auto_map={"AutoModel": "modeling.Custom"})
    opened.clear()
    svd = load_svd(open_folder(str(copies[0]), SVD), torch.float32, CPU)
    keyframe = load_keyframe(open_folder(str(copies[1]), KEYFRAME), torch.float32, CPU)
    assert not mark.exists()
    assert weight_figures(svd, keyframe).parameter_count > 1_000_000
    kinds = {Path(name).suffix for name in opened if name.startswith(str(tmp_path))}
    assert kinds <= {".json", ".safetensors", ".txt"}
    assert ".json" in kinds


@pytest.mark.parametrize("part", ["vae", "image_encoder", "unet"])
def test_a_folder_without_safetensors_is_refused(copies: tuple[Path, Path], part: str) -> None:
    for weights in (copies[0] / part).glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FailedPrecondition, match=f"its {part} has no safetensors") as caught:
        open_folder(str(copies[0]), SVD)
    assert caught.value.reason == "MODEL_REFUSED"
    assert str(copies[0]) not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "WanPipeline"}, "its class is 'WanPipeline'; it must be 'StableVideoDiffusionPipeline'"),
        ({"_class_name": None}, "its class is None"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "the class of its unet is 'UNet2DConditionModel'"),
        ({"scheduler": ["custom_code", "MyScheduler"]}, "the class of its scheduler is 'MyScheduler'"),
        ({"vae": None}, "the class of its vae is None"),
        ({"vae": [1, {}]}, "the class of its vae is {}"),
    ],
)
def test_classes_that_are_not_on_the_list_are_refused(
    copies: tuple[Path, Path], change: dict[str, Any], message: str
) -> None:
    edit(copies[0] / "model_index.json", **change)
    with pytest.raises(FailedPrecondition, match="is refused") as caught:
        open_folder(str(copies[0]), SVD)
    assert message in str(caught.value)


def test_a_keyframe_model_is_no_video_model(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FailedPrecondition, match="its class is 'StableDiffusionPipeline'"):
        open_folder(str(folders[1]), SVD)


@pytest.mark.parametrize("model", ["/nowhere/at/all", "no folder", "../x", "owner/never-pulled-model", ""])
def test_a_model_that_is_not_there_is_not_found(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound) as caught:
        open_folder(model, SVD)
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_a_hub_id_is_looked_up_in_the_local_cache_and_told_how_to_be_fetched(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match="halfreel pull owner/film-model"):
        open_folder("owner/film-model", SVD)
    repository = tmp_path / "models--owner--film-model"
    shutil.copytree(folders[0], repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    folder = open_folder("owner/film-model", SVD)
    assert (folder.model_id, folder.revision) == ("owner/film-model", "0123456789abcdef0123456789abcdef01234567")


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"'])
def test_an_index_that_is_no_json_object_is_refused(copies: tuple[Path, Path], content: str) -> None:
    (copies[0] / "model_index.json").write_text(content)
    with pytest.raises(FailedPrecondition, match=r"model_index\.json"):
        open_folder(str(copies[0]), SVD)


def test_defaults_of_the_model_must_be_numbers(copies: tuple[Path, Path]) -> None:
    edit(copies[0] / "halfreel.json", fps="7; rm")
    with pytest.raises(FailedPrecondition, match=r"fps in its halfreel\.json is not a number"):
        open_folder(str(copies[0]), SVD)


def test_fp16_files_are_picked_where_they_fit_or_are_all_there_is(copies: tuple[Path, Path]) -> None:
    svd_pipeline().to(torch.float16).save_pretrained(copies[0], variant="fp16")
    both = open_folder(str(copies[0]), SVD)
    assert both.variant("unet", prefer_fp16=True) == "fp16"
    assert both.variant("unet", prefer_fp16=False) is None
    for part, stem in SVD.weights.items():
        (copies[0] / part / f"{stem}.safetensors").unlink()
    only = open_folder(str(copies[0]), SVD)
    assert only.variant("unet", prefer_fp16=False) == "fp16"
    pipeline = load_svd(only, torch.float32, CPU)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.image_encoder.dtype} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_part_has_the_dtype_asked_for(folders: tuple[Path, Path], dtype: torch.dtype) -> None:
    svd = load_svd(open_folder(str(folders[0]), SVD), dtype, CPU)
    keyframe = load_keyframe(open_folder(str(folders[1]), KEYFRAME), dtype, CPU)
    for pipeline in (svd, keyframe):
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                assert {parameter.dtype for parameter in part.parameters()} == {dtype}, name
                assert not part.training


def test_weights_in_shards_are_loaded(copies: tuple[Path, Path], svd: Any) -> None:
    single = copies[0] / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(single)
    names = sorted(weights)
    shards = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, copies[0] / "unet" / file)
    single.unlink()
    index = copies[0] / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {name: file for file, each in shards.items() for name in each}})
    )
    loaded = load_svd(open_folder(str(copies[0]), SVD), torch.float32, CPU)
    expected = svd.unet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.unet.state_dict().items())
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(FailedPrecondition, match="not safetensors beside it"):
        open_folder(str(copies[0]), SVD)
    index.write_text(json.dumps({"weight_map": {"x": "pytorch_model.bin"}}))
    with pytest.raises(FailedPrecondition, match="not safetensors beside it"):
        open_folder(str(copies[0]), SVD)


def test_auto_precision_is_fp16_on_a_gpu_and_fp32_on_a_cpu() -> None:
    assert dtype_for("auto", "cuda") == torch.float16
    assert dtype_for("auto", "cpu") == torch.float32
    assert dtype_for("bf16", "cpu") == torch.bfloat16


def test_a_keyframe_model_with_defaults_out_of_range_is_refused(copies: tuple[Path, Path], keyframe: Any) -> None:
    edit(copies[1] / "halfreel.json", step_count=0)
    with pytest.raises(FailedPrecondition, match="is 0; it must be 1 to 100"):
        KeyframeDefaults.of(open_folder(str(copies[1]), KEYFRAME), keyframe)
