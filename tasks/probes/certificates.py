"""Until when a certificate holds."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509


def days_left(der: bytes) -> float:
    """Days until a certificate (DER) ends; below zero when it has."""
    left = x509.load_der_x509_certificate(der).not_valid_after_utc - datetime.now(UTC)
    return left.total_seconds() / 86_400
