"""Runs a server as a container would, without a container engine: in namespaces of its own, as a user of its own.

It has the image's paths, a root it can't write, /tmp and the image's volumes besides, no rights, and no network but
loopback, which several may share. Needs root, unshare, nsenter, setpriv (util-linux) and ip (iproute2).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dockerfile import Stage

# What a container's engine does with an image, by hand. The interpreter may be in a home that others may not enter.
_ENTER = """
set -eu
[ -z "$OWN_NET" ] || ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/venv /mnt/volumes /mnt/secrets
mount --bind "$PYTHON_HOME" /mnt/python
mount --bind "$VENV" /mnt/venv
mount --bind "$VOLUMES" /mnt/volumes
mount --bind "$SECRETS" /mnt/secrets
mount --bind "$HOSTS" /etc/hosts
for folder in /opt /var/lib /var/cache /run /root /tmp; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
mkdir -p /opt/halfreel /run/secrets "$PYTHON_HOME"
mount --bind /mnt/python "$PYTHON_HOME"
mount --bind /mnt/venv /opt/halfreel
mount --bind /mnt/secrets /run/secrets
for folder in $(cd /mnt/volumes && find . -mindepth 3 -maxdepth 3); do
  mkdir -p "/$folder"
  mount --bind "/mnt/volumes/$folder" "/$folder"
done
umount /mnt/python /mnt/venv /mnt/volumes /mnt/secrets
for folder in / /opt /opt/halfreel /var/lib /var/cache /run /run/secrets /root "$PYTHON_HOME" /mnt; do
  mount -o remount,bind,ro "$folder"
done
mount -t tmpfs -o size=64m,mode=1777 tmpfs /tmp
"""
_AS_USER = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]


@dataclass
class Contained:
    """A server that runs so."""

    process: subprocess.Popen[bytes]
    stage: Stage
    environ: Mapping[str, str]
    log: Path

    def run(self, command: Sequence[str], timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs a command beside the server, as `docker exec` does."""
        inside = ["nsenter", f"--target={self.process.pid}", "--mount", "--ipc", "--net", *_as_user(self.stage)]
        return subprocess.run(
            [*inside, "env", "-i", *_assignments(self.environ), *command],
            capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip

    def wait_healthy(self, timeout_s: float) -> None:
        """Runs the image's health check until it is content."""
        end = time.monotonic() + timeout_s
        while True:
            assert self.process.poll() is None, f"exited {self.process.returncode}: {self.tail}"
            checked = self.run(self.stage.health_check)
            if checked.returncode == 0:
                return
            assert time.monotonic() < end, f"not healthy: {checked.stderr}{self.tail}"
            time.sleep(0.5)

    def stop(self, timeout_s: float) -> int:
        """Stops it as its image says; its exit code."""
        self.process.send_signal(getattr(signal, self.stage.one("STOPSIGNAL")))
        return self.process.wait(timeout_s)

    @property
    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]


@contextlib.contextmanager
def contained(
    stage: Stage,
    venv: Path,
    folder: Path,
    *,
    environ: Mapping[str, str] | None = None,
    secrets: Path | None = None,
    beside: Contained | None = None,
    hosts: Sequence[str] = (),
) -> Iterator[Contained]:
    """Starts the server of an image's last stage from the environment that its first stage made.

    Args:
        stage: the last of the image's Dockerfile.
        venv: what its first stage made.
        folder: for the server's data and its log; its own alone.
        environ: variables beside the image's.
        secrets: what is under /run/secrets.
        beside: whose network it shares.
        hosts: names of this machine, beside localhost.
    """
    volumes, empty, names = folder / "volumes", folder / "empty", folder / "hosts"
    empty.mkdir()
    for path in stage.words("VOLUME"):  # such as /var/lib/halfreel: as the image has them, for its user alone
        volume = volumes / path[1:]
        volume.mkdir(parents=True)
        volume.chmod(0o700)
        os.chown(volume, *map(int, stage.one("USER").split(":")))
    names.write_text(f"127.0.0.1 {' '.join(['localhost', *hosts])}\n")
    merged = {**stage.pairs("ENV"), **(environ or {})}
    merged["PATH"] = merged["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    start = [*_as_user(stage), "env", "-i", *_assignments(merged), *stage.words("ENTRYPOINT")]
    script = f"{_ENTER}\ncd {stage.one('WORKDIR')}\nexec {shlex.join(start)}"
    network = [] if beside is None else ["nsenter", f"--target={beside.process.pid}", "--net"]
    apart = ["unshare", "--mount", "--ipc", "--propagation=private", *(["--net"] if beside is None else [])]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*network, *apart, "sh", "-c", script],
            env={
                "PATH": os.environ["PATH"],
                "PYTHON_HOME": sys.base_prefix,
                "VENV": str(venv),
                "VOLUMES": str(volumes),
                "SECRETS": str(secrets or empty),
                "HOSTS": str(names),
                "OWN_NET": "" if beside else "yes",
            },
            stdout=output,
            stderr=output,
        )
    try:
        _wait_apart(process)
        yield Contained(process, stage, merged, log)
    finally:
        process.kill()
        process.wait()


def _wait_apart(process: subprocess.Popen[bytes]) -> None:
    """Waits until it is in its namespaces: who joined it before would be in those of this process."""
    own = Path("/proc/self/ns/mnt").readlink()
    while process.poll() is None and Path(f"/proc/{process.pid}/ns/mnt").readlink() == own:
        time.sleep(0.01)


def _as_user(stage: Stage) -> list[str]:
    user, group = stage.one("USER").split(":")
    return ["setpriv", f"--reuid={user}", f"--regid={group}", *_AS_USER]


def _assignments(environ: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environ.items()]
