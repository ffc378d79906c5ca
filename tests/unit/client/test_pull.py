"""`halfreel pull` against a small hub on loopback: what it takes, what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from halfreel_client.pull.selection import NoSafetensorsError, RemoteFile, select

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIG = bytes(range(256)) * 12_000  # 3 MB
HALF = BIG[: len(BIG) // 2]

PIPELINE = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "README.md": b"words",
    "sd_turbo.safetensors": b"x" * 5000,
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": BIG,
    "unet/diffusion_pytorch_model.fp16.safetensors": HALF,
    "vae/diffusion_pytorch_model.safetensors": b"v" * 3000,
    "text_encoder/pytorch_model.bin": b"never",
    "tokenizer/vocab.json": b'{"a": 0}',
    "tokenizer/merges.txt": b"a b",
    "scheduler/scheduler_config.json": b"{}",
    "model.py": b"never",
}
PIPELINE_TAKEN = {
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """Answers as a hub does, for the models of `server.models`."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/revision/([\w-]+)(\?.*)?", self.path)
        if api is not None:
            self.tell_model(api[1], api[2])
            return
        file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([\w-]+)/(.+)", self.path)
        files = self.server.models.get(file[1]) if file else None
        if files is None or file[3] not in files:
            self.refuse(404, "EntryNotFound")
        elif file[1] in self.server.gated:
            self.refuse(403, "GatedRepo")
        else:
            self.send_file(file[3], files[file[3]])

    def tell_model(self, repo_id: str, revision: str) -> None:
        files = self.server.models.get(repo_id)
        if files is None:
            self.refuse(401, "RepoNotFound")
            return
        if revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
            return
        siblings: list[dict[str, object]] = []
        for name, data in files.items():
            item: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_id(data)}
            if name.endswith((".safetensors", ".bin")):
                item["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(item)
        self.send(200, json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode())

    def send_file(self, name: str, data: bytes) -> None:
        large = name.endswith((".safetensors", ".bin"))
        etag = hashlib.sha256(data).hexdigest() if large else git_id(data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        sent = self.server.lies.get(name, data)[start:]
        headers |= {"Content-Length": str(len(sent)), "X-Linked-Size": str(len(data))}
        self.send_response(206 if asked else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cuts.pop(0) if large and self.server.cuts else None
        self.wfile.write(sent[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": "refused"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.models = {"acme/pipeline": dict(PIPELINE)}
    server.gated, server.lies, server.cuts, server.requests = set(), {}, [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pull(hub: Any, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HALFREEL_"))}
    own = {key: value for key, value in own.items() if not key.lower().endswith("_proxy")}
    own |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "halfreel_client", "pull", *words], env=own, capture_output=True, text=True, timeout=60
    )


def taken(folder: Path, repo: str = "acme--pipeline") -> dict[str, bytes]:
    root = folder / "hub" / f"models--{repo}" / "snapshots" / COMMIT
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fetched(hub: Any, name: str) -> list[str | None]:
    return [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(name)]


def test_takes_what_a_server_opens_and_nothing_else(hub: Any, tmp_path: Path) -> None:
    done = pull(hub, tmp_path, "acme/pipeline")
    assert (done.returncode, done.stderr) == (0, "")
    assert taken(tmp_path) == {name: PIPELINE[name] for name in PIPELINE_TAKEN}
    assert (tmp_path / "hub" / "models--acme--pipeline" / "refs" / "main").read_text() == COMMIT
    assert "7 files, 1.5 MiB, 1.5 MiB to fetch" in done.stdout
    assert "complete and checked" in done.stdout
    assert not [path for _, path, _ in hub.requests if path.endswith((".bin", ".py", ".md", "sd_turbo.safetensors"))]


def test_a_second_pull_fetches_nothing(hub: Any, tmp_path: Path) -> None:
    pull(hub, tmp_path, "acme/pipeline")
    hub.requests.clear()
    done = pull(hub, tmp_path, "acme/pipeline")
    assert done.returncode == 0
    assert "0 B to fetch" in done.stdout
    assert [path for _, path, _ in hub.requests if "resolve" in path] == []


def test_goes_on_when_the_connection_breaks(hub: Any, tmp_path: Path) -> None:
    hub.cuts = [700_000, 200_000]
    done = pull(hub, tmp_path, "acme/pipeline")
    assert (done.returncode, done.stderr) == (0, "")
    assert taken(tmp_path)["unet/diffusion_pytorch_model.fp16.safetensors"] == HALF
    assert len(fetched(hub, "fp16.safetensors")) == 3


def test_goes_on_in_another_process(hub: Any, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--acme--pipeline" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(HALF).hexdigest()}.halfreel.incomplete").write_bytes(HALF[:1_000_000])
    done = pull(hub, tmp_path, "acme/pipeline")
    assert done.returncode == 0
    assert "1.5 MiB, 526 KiB to fetch" in done.stdout
    assert fetched(hub, "fp16.safetensors") == ["bytes=1000000-"]
    assert taken(tmp_path)["unet/diffusion_pytorch_model.fp16.safetensors"] == HALF


def test_bytes_that_are_not_the_hubs_are_refused(hub: Any, tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    hub.lies = {name: HALF[::-1]}
    done = pull(hub, tmp_path, "acme/pipeline")
    assert done.returncode == 1
    assert "not what the hub says" in done.stderr
    assert name not in taken(tmp_path)
    assert list(tmp_path.rglob("*.incomplete")) == []
    hub.lies = {}
    assert pull(hub, tmp_path, "acme/pipeline").returncode == 0
    assert taken(tmp_path)[name] == HALF


def test_a_damaged_cache_is_found_and_mended(hub: Any, tmp_path: Path) -> None:
    pull(hub, tmp_path, "acme/pipeline")
    for name in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"):
        blob = (tmp_path / "hub/models--acme--pipeline/snapshots" / COMMIT / name).resolve()
        blob.write_bytes(b"rot" + blob.read_bytes()[3:])
        assert pull(hub, tmp_path, "acme/pipeline").returncode == 1
        assert pull(hub, tmp_path, "acme/pipeline").returncode == 0
        assert taken(tmp_path)[name] == PIPELINE[name]


def test_a_gated_model_says_where_to_accept_its_licence(hub: Any, tmp_path: Path) -> None:
    hub.gated = {"acme/pipeline"}
    done = pull(hub, tmp_path, "acme/pipeline")
    assert done.returncode == 1
    assert f"http://127.0.0.1:{hub.server_port}/acme/pipeline" in done.stderr
    assert "hf auth login" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_refusals(hub: Any, tmp_path: Path) -> None:
    hub.models["acme/pickle"] = {"config.json": b"{}", "pytorch_model.bin": b"never"}
    for words, code, text in (
        (("acme/nothing",), 4, "no model 'acme/nothing'"),
        (("acme/pipeline", "--revision", "v9"), 4, "no such revision"),
        (("acme/pickle",), 1, "safetensors"),
        (("a/b/c",), 2, "is no id of a model"),
        (("llm", "video", "--revision", "main"), 2, "--revision"),
    ):
        done = pull(hub, tmp_path, *words)
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    hub.server_port = 9
    assert pull(hub, tmp_path, "acme/pipeline").returncode == 3


def test_dry_run_tells_the_licence_and_fetches_nothing(hub: Any, tmp_path: Path) -> None:
    hub.models["zai-org/chatglm3-6b"] = {
        "config.json": b"{}",
        "tokenizer.model": b"spm",
        "model-00001-of-00002.safetensors": b"1" * 1000,
        "model-00002-of-00002.safetensors": b"2" * 1000,
        "model.safetensors.index.json": b"{}",
        "modeling_chatglm.py": b"never",
        "pytorch_model-00001-of-00007.bin": b"never",
        "original/model.safetensors": b"x" * 9000,
    }
    done = pull(hub, tmp_path, "llm", "--dry-run")
    assert done.returncode == 0
    assert "zai-org/chatglm3-6b at 0123456789ab: 5 files, 2 KiB" in done.stdout
    assert "registration" in done.stdout
    assert [path for _, path, _ in hub.requests if "resolve" in path] == []


def names(*files: str) -> list[str]:
    return [file.name for file in select(RemoteFile(name, 1, "", "") for name in files)]


def test_a_chat_template_in_a_file_of_its_own_is_taken() -> None:
    assert names("model.safetensors", "chat_template.jinja", "LICENSE") == ["chat_template.jinja", "model.safetensors"]


def test_selection_of_shards_in_half_precision() -> None:
    assert names(
        "model_index.json",
        "te/model-00001-of-00002.safetensors",
        "te/model-00002-of-00002.safetensors",
        "te/model.fp16-00001-of-00002.safetensors",
        "te/model.fp16-00002-of-00002.safetensors",
        "vae/model.safetensors",
        "vae/deep/model.safetensors",
        "te/.hidden.json",
    ) == [
        "model_index.json",
        "te/model.fp16-00001-of-00002.safetensors",
        "te/model.fp16-00002-of-00002.safetensors",
        "vae/model.safetensors",
    ]
    with pytest.raises(NoSafetensorsError):
        names("config.json", "unet/model.safetensors")
