"""`halfreel certs`: what it makes, what it refuses, and whose eyes it is for."""

from __future__ import annotations

import ipaddress
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from halfreel_client.certificates import CertificatesError, Files, make_certificates
from halfreel_client.command.app import app


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_server_is_named_by_all_its_hosts(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, ["gateway.example", "*.video", "10.1.2.3", "::1"], 30)
    names = loaded(files.certificate("server")).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway.example", "*.video"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.1.2.3"),
        ipaddress.ip_address("::1"),
    ]


def test_the_ca_signs_both_and_neither_may_sign(certificates: Files) -> None:
    ca = loaded(certificates.certificate("ca"))
    for name in ("server", "client"):
        certificate = loaded(certificates.certificate(name))
        certificate.verify_directly_issued_by(ca)
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=29) < left <= timedelta(days=30)


def test_all_files_are_for_their_owner_alone(certificates: Files) -> None:
    paths = [*certificates.folder.iterdir()]
    assert sorted(path.name for path in paths) == [
        *("ca-key.pem", "ca.pem", "client-key.pem", "client.pem", "server-key.pem", "server.pem")
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_a_second_time_the_ca_stays_and_the_rest_is_new(certificates: Files) -> None:
    before = {path.name: path.read_bytes() for path in certificates.folder.iterdir()}
    make_certificates(certificates.folder, ["localhost"], 30)
    after = {path.name: path.read_bytes() for path in certificates.folder.iterdir()}
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca-key.pem"}
    loaded(certificates.certificate("server")).verify_directly_issued_by(loaded(certificates.certificate("ca")))


@pytest.mark.parametrize("host", ["", "a b", "http://a", "a/b", "ä", "a..b", "-a", "h:1"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(CertificatesError, match="is no host name and no IP address"):
        make_certificates(tmp_path, [host], 30)
    assert not (tmp_path / "ca.pem").exists()


def test_a_ca_without_its_own_key_is_refused(certificates: Files, foreign_certificates: Files) -> None:
    certificates.key("ca").write_bytes(foreign_certificates.key("ca").read_bytes())
    with pytest.raises(CertificatesError, match="is not the key of"):
        make_certificates(certificates.folder, ["localhost"], 30)
    certificates.key("ca").unlink()
    with pytest.raises(CertificatesError, match="nothing can be signed"):
        make_certificates(certificates.folder, ["localhost"], 30)


def test_a_ca_whose_time_is_over_is_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["localhost"], 30, now=datetime.now(UTC) - timedelta(days=3651))
    with pytest.raises(CertificatesError, match="is not valid now"):
        make_certificates(tmp_path, ["localhost"], 30)


def test_the_command_tells_what_each_file_is_for(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["certs", str(tmp_path / "certs"), "--host", "video.example", "--days", "7"])
    assert result.exit_code == 0, result.output
    assert "server-key.pem" in result.output
    certificate = loaded(tmp_path / "certs" / "server.pem")
    assert certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=7)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["video.example"]


def test_the_command_says_which_package_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "halfreel_client.certificates")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    result = CliRunner().invoke(app, ["certs", str(tmp_path / "certs")])
    assert result.exit_code == 1
    assert "pip install 'halfreel-client[certs]'" in result.output
    assert not (tmp_path / "certs").exists()


def test_a_wrong_host_is_told_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["certs", str(tmp_path / "certs"), "--host", "a b"])
    assert result.exit_code == 2
    assert result.output.splitlines() == ["halfreel: --host 'a b' is no host name and no IP address"]
