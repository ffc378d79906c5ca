"""Certificates of one's own: a CA, and what it signs for servers and for clients.

It does not know who uses them. Needs the package `cryptography`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
_DNS_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# A star in front stands for any one name.
_DNS_NAME = re.compile(rf"(\*\.)?{_DNS_LABEL}(\.{_DNS_LABEL}){{0,10}}")
# Two machines' clocks differ.
_SKEW = timedelta(minutes=5)


class CertificatesError(Exception):
    """One line on why certificates can't be made, for a person."""


@dataclass(frozen=True)
class Files:
    """What is in a folder of certificates."""

    folder: Path

    def certificate(self, name: str) -> Path:
        """PEM of "ca", "server" or "client"."""
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """PEM of its key."""
        return self.folder / f"{name}-key.pem"


@dataclass(frozen=True)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_certificates(folder: Path, hosts: Sequence[str], days: int, now: datetime | None = None) -> Files:
    """Makes a certificate for servers and one for clients, signed by the folder's CA, which is made if there is none.

    Files that are there are replaced, but for the CA's: so are certificates renewed. All are for their owner alone.

    Args:
        folder: made if it is not there.
        hosts: names and IP addresses by which the servers are called.
        days: how long the two are valid; the CA is for ten years.
        now: when that begins; the clock's time when left out.

    Raises:
        CertificatesError: a host is no name, or the CA in the folder can't be used.
        OSError: the folder can't be written.
    """
    began = now or datetime.now(UTC)
    names = [_general_name(host) for host in hosts]
    files = Files(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    issuer = _read_ca(files, began) if files.certificate("ca").exists() else _make_ca(files, began)
    for name, usage, subject_names in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH, names),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH, []),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(f"Halfreel {name}", key, began, timedelta(days=days)).issuer_name(issuer.certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        if subject_names:
            builder = builder.add_extension(x509.SubjectAlternativeName(subject_names), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(authority, critical=False)
        _write(files, name, builder.sign(issuer.key, hashes.SHA256()), key)
    return files


def _make_ca(files: Files, began: datetime) -> _Issuer:
    if files.key("ca").exists():
        raise CertificatesError(f"{files.key('ca')} is there without {files.certificate('ca')}; name another folder")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("Halfreel CA", key, began, timedelta(days=CA_DAYS))
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Halfreel CA")]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    _write(files, "ca", certificate, key)
    return _Issuer(certificate, key)


def _read_ca(files: Files, now: datetime) -> _Issuer:
    path = files.certificate("ca")
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key(files.key("ca").read_bytes(), password=None)
    except (ValueError, TypeError):
        raise CertificatesError(f"{path} or its key is not PEM, or the key is encrypted") from None
    except FileNotFoundError:
        raise CertificatesError(f"{files.key('ca')} is not there; without it nothing can be signed") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificatesError(f"{files.key('ca')} is not the key of {path}")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise CertificatesError(f"{path} is not valid now; remove it and its key to make another CA")
    return _Issuer(certificate, key)


def _builder(name: str, key: ec.EllipticCurvePrivateKey, began: datetime, lasts: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began - _SKEW)
        .not_valid_after(began + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host):
        raise CertificatesError(f"--host {host!r} is no host name and no IP address")
    return x509.DNSName(host)


def _write(files: Files, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    plain = serialization.NoEncryption()
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    _replace(files.key(name), encoded)
    _replace(files.certificate(name), certificate.public_bytes(serialization.Encoding.PEM))


def _replace(path: Path, content: bytes) -> None:
    """Writes a file that its owner alone may read; a server that reads it meanwhile finds the old or the new."""
    descriptor, half_written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # has the rights 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(half_written).replace(path)
