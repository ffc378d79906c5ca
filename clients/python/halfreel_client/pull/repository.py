"""One model's repository on a hub, and what of it is in the local cache."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

# Nothing is told to anyone; the library reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, disable_progress_bars

from halfreel_client.pull.large_file import DamagedFileError, LargeFile, OnBytes, check
from halfreel_client.pull.selection import RemoteFile, select

DEFAULT_REVISION = "main"
_LOOKUP_TIMEOUT_S = 30.0


class MovedError(Exception):
    """The revision moved to another commit while its files were fetched."""


def cache_folder() -> Path:
    """The hub's local cache, where the servers look for models."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def free_bytes() -> int:
    """Bytes free on the cache's disk."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def page_of(repo_id: str) -> str:
    """Where a person finds a model, and accepts its licence."""
    return f"{constants.ENDPOINT}/{repo_id}"


def look_up(repo_id: str, revision: str) -> Repository:
    """What is to be fetched of a model.

    Raises:
        NoSafetensorsError: it has no weights that a server would open.
        huggingface_hub.errors.HTTPError: the hub does not know it, refused, or could not be reached.
    """
    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=_LOOKUP_TIMEOUT_S)
    files = [
        RemoteFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else "", item.blob_id or "")
        for item in info.siblings or ()
    ]
    return Repository(repo_id, revision, info.sha or "", tuple(select(files)))


@dataclass(frozen=True)
class Repository:
    """A model's files at one commit.

    Attributes:
        repo_id: such as "stabilityai/sd-turbo".
        revision: the branch, tag or commit that was asked for.
        commit: what the revision was when it was looked up.
        files: what is to be fetched.
    """

    repo_id: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def missing_bytes(self) -> int:
        """Bytes that are not in the cache yet, also not in part."""
        return sum(file.size_bytes - self._present_bytes(file) for file in self.files)

    def fetch(self, file: RemoteFile, on_bytes: OnBytes) -> Path:
        """Brings a file into the cache, checked, also one that was there already; its path.

        Raises:
            DamagedFileError: its bytes are not those of the hub; they were removed.
            MovedError: the revision is another commit by now.
            huggingface_hub.errors.HTTPError: the hub refused (GatedRepoError where a licence must be accepted first),
                or could not be reached.
            OSError: the disk is full.
        """
        path = self._cached(file)
        if path is None and file.sha256 and not self._blob_path(file).exists():
            self._fetch_blob(file, on_bytes)
            return self._link(file)
        path = path or self._link(file)
        try:
            check(path, file.size_bytes, file.sha256, file.git_id, on_bytes)
        except DamagedFileError:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise
        return path

    def _fetch_blob(self, file: RemoteFile, on_bytes: OnBytes) -> None:
        part_path = self._part_path(file)
        part_path.parent.mkdir(parents=True, exist_ok=True)
        with part_path.open("a+b") as part:
            large = LargeFile(part, file.size_bytes, on_bytes)
            url = hf_hub_url(self.repo_id, file.name, revision=self.commit)
            large.fetch(url, build_hf_headers(library_name="halfreel"))
        if large.sha256 != file.sha256:
            part_path.unlink()
            raise DamagedFileError
        part_path.replace(self._blob_path(file))

    def _link(self, file: RemoteFile) -> Path:
        """Has the hub's own library put the file where others look for it; what is not there is fetched."""
        disable_progress_bars()
        path = Path(hf_hub_download(self.repo_id, file.name, revision=self.revision))
        if self.commit not in path.parts:
            raise MovedError
        return path

    def _cached(self, file: RemoteFile) -> Path | None:
        path = try_to_load_from_cache(self.repo_id, file.name, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def _present_bytes(self, file: RemoteFile) -> int:
        if self._cached(file) is not None or (file.sha256 and self._blob_path(file).exists()):
            return file.size_bytes
        part = self._part_path(file)
        return min(part.stat().st_size, file.size_bytes) if file.sha256 and part.exists() else 0

    def _blob_path(self, file: RemoteFile) -> Path:
        # The layout of the hub's cache: a large file is known by its hash, and linked from its name.
        folder = repo_folder_name(repo_id=self.repo_id, repo_type="model")
        return cache_folder() / folder / "blobs" / file.sha256

    def _part_path(self, file: RemoteFile) -> Path:
        blob = self._blob_path(file)
        return blob.with_name(f"{blob.name}.halfreel.incomplete")
