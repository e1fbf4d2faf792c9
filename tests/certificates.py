"""Certificates of a test's own making."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Issuer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def self_signed(path: Path, days: float = 30.0) -> Path:
    """Write a certificate for localhost that ends in so many days, and its key, into one PEM file."""
    end = datetime.now(UTC) + timedelta(days=days)
    made, key = _signed("localhost", end - timedelta(days=400), end, x509.DNSName("localhost"), None)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + _pem_of(key))
    return path


def certificate(folder: Path, name: str, issuer: Issuer | None = None) -> Issuer:
    """Write ``name.pem`` and ``name.key``: an authority, or a server on 127.0.0.1 that it vouches for."""
    now = datetime.now(UTC)
    where = None if issuer is None else x509.IPAddress(ip_address("127.0.0.1"))
    made, key = _signed(name, now - timedelta(hours=1), now + timedelta(days=1), where, issuer)
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(_pem_of(key))
    (folder / f"{name}.key").chmod(0o600)
    return made, key


def _signed(name: str, begin: datetime, end: datetime, where: x509.GeneralName | None, issuer: Issuer | None) -> Issuer:
    """A certificate of an address; of none: an authority's. Without an issuer it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(begin).not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=where is None, path_length=None), critical=True)
    )  # fmt: skip
    if where is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([where]), critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
