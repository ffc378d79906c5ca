"""A tiny model on the CPU, loaded through the server's own path."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llm
import torch

from halfreel_llm.checkpoint import Checkpoint, find_checkpoint
from halfreel_llm.generation import TextModel
from halfreel_llm.tokenizer import TextTokenizer, open_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm.save_glm(tmp_path_factory.mktemp("models") / "tiny-glm")


@pytest.fixture(scope="session")
def checkpoint(glm_folder: Path) -> Checkpoint:
    return find_checkpoint(str(glm_folder))


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    return open_tokenizer(checkpoint)


@pytest.fixture(scope="session")
def text_model(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> TextModel:
    return tiny_llm.text_model(checkpoint, tokenizer)
