"""Model folders: what is opened, what is refused, and that nothing in a folder is ever run."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_llm
import torch

from halfreel_llm.checkpoint import CheckpointError, find_checkpoint
from halfreel_llm.served_model import load_served_model
from halfreel_llm.settings import LlmSettings
from halfreel_llm.tokenizer import open_tokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.device import CPU as CPU_DEVICE
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import MemoryLimit

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llm.save_glm(tmp_path / "model")


class OpenedFiles:
    """The names of files that Python opened below one folder. An audit hook can't be removed, so it can be off."""

    def __init__(self) -> None:
        self.below: Path | None = None
        self.names: set[str] = set()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.below is not None and isinstance(arguments[0], str | bytes | os.PathLike):
            path = Path(os.fsdecode(arguments[0]))
            if path.is_relative_to(self.below):
                self.names.add(path.name)


@pytest.fixture(scope="module")
def audited() -> OpenedFiles:
    return OpenedFiles()


@pytest.fixture
def opened(audited: OpenedFiles, folder: Path) -> Iterator[set[str]]:
    audited.names.clear()
    audited.below = folder
    yield audited.names
    audited.below = None


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return (Path.write_text, (str(self.file), "unpickled"))  # type: ignore[return-value]


def test_code_and_pickles_beside_the_weights_are_never_opened(
    folder: Path, tmp_path: Path, opened: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    code = f"import pathlib; pathlib.Path({str(run)!r}).write_text('imported')\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(run)))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    tiny_llm.change_json(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"},
        trust_remote_code=True,
        transformers_weights="pytorch_model.bin",
        attn_implementation="somebody/kernel",
        _attn_implementation_internal="somebody/kernel",
        fusion_config={"evil": True},
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_evil.Tokenizer", None]}})
    )
    monkeypatch.chdir(folder)
    opened.clear()  # what was written above
    checkpoint = find_checkpoint(str(folder))
    tokenizer = open_tokenizer(checkpoint)
    model = load_model(checkpoint, device=CPU, dtype=torch.float32)
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer.stop_ids
    assert not run.exists()
    assert opened <= {"config.json", "generation_config.json"}  # safetensors and SentencePiece open theirs natively


def test_a_folder_with_only_pickles_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors are loaded"):
        find_checkpoint(str(folder))


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        find_checkpoint(str(tmp_path / "nowhere"))


def test_a_hub_id_that_is_not_in_the_cache_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="halfreel pull somebody/some-model"):
        find_checkpoint("somebody/some-model")


def test_a_hub_id_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    tiny_llm.save_glm(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = find_checkpoint("somebody/some-model")
    assert (found.model_id, found.revision) == ("somebody/some-model", commit)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not on the list of this server: chatglm, glm, llama"),
        ({"model_type": None}, "model_type None is not on the list"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": "many"}, "config.json is refused: .*hidden_size"),
        ({"hidden_act": "evil"}, "describes no network"),
    ],
)
def test_a_config_this_server_does_not_run_is_refused(folder: Path, changes: dict[str, Any], told: str) -> None:
    tiny_llm.change_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=told):
        load_model(find_checkpoint(str(folder)), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\udcff"])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_checkpoint(str(folder))


def test_a_missing_config_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("model-00002.safetensors", "which is missing"),
        ("../secret.safetensors", "no safetensors file beside it"),
        ("/etc/passwd", "no safetensors file beside it"),
        ("pytorch_model.bin", "no safetensors file beside it"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(folder: Path, named: str, told: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": named}}))
    with pytest.raises(CheckpointError, match=told):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("weight_map", [None, {}, []])
def test_an_index_without_names_is_refused(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="no weight_map"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("kept", [0, 7, 100, -1000])
def test_a_truncated_weight_file_is_refused(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(find_checkpoint(str(folder)), device=CPU, dtype=torch.float32)


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        open_tokenizer(find_checkpoint(str(folder)))


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"no pieces")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is damaged"):
        open_tokenizer(find_checkpoint(str(folder)))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_llm.save_glm(tmp_path, vocab_size=tiny_llm.PIECE_COUNT)
    with pytest.raises(CheckpointError, match=r"has the token 1008, its config\.json 1000 tokens"):
        open_tokenizer(find_checkpoint(str(folder)))


def test_a_context_beyond_the_model_s_own_is_refused(folder: Path) -> None:
    settings = LlmSettings(model=str(folder), device="cpu", context_token_count=4096)
    with pytest.raises(CheckpointError, match="context_token_count is 4096; model model can take at most 1024"):
        load_served_model(settings, CPU_DEVICE, MemoryMonitor(CPU_DEVICE), MemoryLimit(CPU_DEVICE, 2**30, 0, 0))
