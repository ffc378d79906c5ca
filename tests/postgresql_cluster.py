"""A PostgreSQL cluster of a test's own on loopback, which can be stopped and started again at the same address."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
from ports import free_port

# Runs a program as another user, in a process of its own: subprocess's `user` forks this one, gRPC's threads and all.
_BECOME = """
import os, pwd, sys
entry = pwd.getpwnam(sys.argv[1])
os.setgroups([]), os.setgid(entry.pw_gid), os.setuid(entry.pw_uid)
os.execv(sys.argv[2], sys.argv[2:])
"""
_WITHIN_S = 60


class Cluster:
    """PostgreSQL with one user, `halfreel`, who needs no password. It refuses to run as root, and then is `postgres`'s.

    Args:
        programs: the folder of initdb and postgres.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._database_count = 0
        self._user: str | None = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
        self.folder = Path(tempfile.mkdtemp(prefix="halfreel-pg-", dir="/tmp"))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._port = free_port()
        self.run("initdb", "-D", str(self._data), "-U", "halfreel", "-A", "trust", "--no-sync")
        self.start()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://halfreel@127.0.0.1:{self._port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._database_count += 1
        name = f"own_{self._database_count}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self.run("pg_ctl", "-D", str(self._data), "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        """As if its machine was gone; its data is there when it is started again."""
        self.run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, program: str, *arguments: str) -> str:
        """Runs one of PostgreSQL's programs as the cluster's user, in its folder; gives what it prints."""
        command = [str(self._programs / program), *arguments]
        if self._user is not None:
            command = [sys.executable, "-c", _BECOME, self._user, *command]
        # pg_ctl's server keeps what it inherits: a pipe would never be at its end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                command, cwd=self.folder, stdout=output, stderr=output, timeout=_WITHIN_S, check=False
            )
            output.seek(0)
            text = output.read()
        assert done.returncode == 0, text
        return text

    @property
    def _data(self) -> Path:
        return self.folder / "data"
