"""The folders of the embedded models: whole, and as their cards say."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import halfreel_pocket
from halfreel_gateway import script

POCKET = Path(__file__).resolve().parents[3] / "models" / "pocket"
WEIGHTS = POCKET / "halfreel_pocket" / "weights"
LARGEST_BYTES = 32_000_000


def test_importing_the_package_imports_no_torch():
    code = "import sys, halfreel_pocket; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'gpt'; it must be one of glm, keyframe, svd"):
        halfreel_pocket.folder("gpt")


@pytest.mark.parametrize("name", halfreel_pocket.NAMES)
def test_a_folder_holds_safetensors_and_no_pickle(name):
    folder = halfreel_pocket.folder(name)
    assert list(folder.rglob("*.safetensors"))
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl", ".py"}]
    if name == "glm":
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["GlmForCausalLM"]
        assert (folder / "tokenizer.model").is_file()
    else:
        defaults = json.loads((folder / "halfreel.json").read_text())
        assert (defaults["width_px"], defaults["height_px"]) == (128, 96)


def test_all_models_together_are_small():
    paths = [path for name in halfreel_pocket.NAMES for path in halfreel_pocket.folder(name).rglob("*.safetensors")]
    assert sum(path.stat().st_size for path in paths) <= LARGEST_BYTES


@pytest.mark.parametrize("name", sorted(path.name for path in WEIGHTS.glob("*")))
def test_a_card_tells_the_files_beside_it(name):
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (\S+\.safetensors) \| \d+ \| \d+ \| ([0-9a-f]{64}) \|$", card, re.MULTILINE))
    files = {str(path.relative_to(WEIGHTS / name)): path for path in (WEIGHTS / name).rglob("*.safetensors")}
    assert listed == {where: hashlib.sha256(path.read_bytes()).hexdigest() for where, path in files.items()}
    assert (WEIGHTS / name / "losses.svg").is_file()


def loaded(monkeypatch, name):
    """One of the training scripts."""
    monkeypatch.syspath_prepend(str(POCKET / "train"))
    spec = importlib.util.spec_from_file_location(f"train_{name}", POCKET / "train" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_no_configuration_names_a_folder_of_the_machine_it_was_trained_on(monkeypatch, tmp_path):
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path
    written = tmp_path / "config.json"
    written.write_text('{\n  "_name_or_path": "build/vae",\n  "width": 64\n}\n')
    loaded(monkeypatch, "publish").forget_origin(written)
    assert written.read_text() == '{\n  "width": 64\n}\n'


def test_the_script_model_learns_the_gateways_own_words(monkeypatch):
    module = loaded(monkeypatch, "glm")
    assert module.INSTRUCTION == script.INSTRUCTION
    for count in (None, 3):
        assert module.question("An idea.", count or 0) == script.question("An idea.", count)
