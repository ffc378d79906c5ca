"""Certificates and tokens in a test's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from sign_in import LOOPBACK_NAMES, Keyring

from halfreel_client.certificates import Files, make_certificates


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


@pytest.fixture
def certificates(tmp_path: Path) -> Files:
    return make_certificates(tmp_path / "certs", LOOPBACK_NAMES, 30)


@pytest.fixture
def foreign_certificates(tmp_path: Path) -> Files:
    """Of another CA."""
    return make_certificates(tmp_path / "foreign", LOOPBACK_NAMES, 30)
