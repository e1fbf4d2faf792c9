"""The keys that an ssh server shows, to be pinned by a person who has compared them."""

from __future__ import annotations


class ScanError(Exception):
    """There is no key to show; the message is one line for a person."""


def scan(address: str, port: int, seconds: float) -> tuple[str, str]:
    """One look: the public key (``TYPE BASE64``) and its fingerprint (``SHA256:...``). Raises ScanError."""
    import asyncio

    try:
        import asyncssh
    except ImportError:
        raise ScanError("asyncssh is not installed here: install ai-manage-ops[ssh]") from None

    async def look() -> asyncssh.SSHKey | None:
        return await asyncio.wait_for(asyncssh.get_server_host_key(address, port, config=None), seconds)

    try:
        key = asyncio.run(look())
    except TimeoutError:
        raise ScanError(f"no answer within {seconds:g} s") from None
    except (OSError, asyncssh.Error) as error:
        raise ScanError(f"it showed no key: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if key is None:
        raise ScanError("it showed no key")
    kind, value = key.export_public_key().decode().split()[:2]
    return f"{kind} {value}", str(key.get_fingerprint())
