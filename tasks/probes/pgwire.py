"""As much of PostgreSQL's protocol as one look needs.

Spoken by hand: libpq hashes as many rounds as a server asks for, which stops the process for as long as that takes,
keeps in memory whatever it is sent, gives the password in the clear to whoever asks, and finds servers, passwords and
certificates by itself, in its environment and in files.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import socket
import stringprep
import struct
import unicodedata
from collections.abc import Iterator, Mapping

from tasks.probes.net import Down, Unable

#: The most that a server may send.
MAX_BYTES = 1024 * 1024
#: Of PBKDF2. PostgreSQL asks for 4,096 unless it is told otherwise; OWASP names this many.
MAX_ROUNDS = 600_000
_PROTOCOL, _TLS_PLEASE = 196_608, 80_877_103
_OK, _CLEARTEXT, _MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 10, 11, 12
_SCRAM = "SCRAM-SHA-256"
_NO_SERVER = "the answer is not that of a PostgreSQL server"


class Refused(Exception):
    """The server says no, by the code of its error."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


async def wants_tls(sock: socket.socket) -> bool:
    """Ask on the bare socket whether TLS may begin. One byte is read and no more: what somebody in between has put
    behind it is then no TLS, instead of the first words inside of it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, struct.pack("!ii", 8, _TLS_PLEASE))
    said = await loop.sock_recv(sock, 1)
    if said == b"":
        raise EOFError
    if said not in (b"S", b"N", b"E"):
        raise Down(_NO_SERVER)
    return said == b"S"


class Wire:
    """One connection. Raises Refused, Down, Unable, OSError, EOFError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._left = MAX_BYTES

    async def start(self, settings: Mapping[str, str], password: str | None, *, is_verified: bool) -> None:
        """Log in. ``is_verified``: the server's certificate was: only then it gets the password itself."""
        pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in settings.items())
        self._writer.write(struct.pack("!ii", len(pairs) + 9, _PROTOCOL) + pairs + b"\0")
        scram: Scram | None = None
        while True:
            kind, body = await self._next()
            if kind == b"Z":
                return
            if kind != b"R":
                continue  # its settings, its key for cancelling
            (asked,), said = _unpacked("!i", body), body[4:]
            if asked == _OK:
                if scram is not None and not scram.is_proved:
                    raise Down("it does not prove that it knows the password")
                continue
            if password is None:
                raise Down("it asks for a password")
            if asked == _CLEARTEXT:
                if not is_verified:
                    raise Unable("it asks for the password in the clear, which it gets with sslmode=verify-full only")
                self._send(b"p", password.encode() + b"\0")
            elif asked == _MD5:
                self._send(b"p", _md5(settings["user"], password, said) + b"\0")
            elif asked == _SASL and _SCRAM.encode() in said.split(b"\0"):
                scram = Scram(password)
                first = scram.first()
                self._send(b"p", f"{_SCRAM}\0".encode() + struct.pack("!i", len(first)) + first)
            elif asked == _SASL_CONTINUE and scram is not None:
                self._send(b"p", await scram.answer(said))
            elif asked == _SASL_FINAL and scram is not None:
                scram.finish(said)
            else:
                raise Unable("it asks for a proof of who this is that checks cannot give")

    async def first_value(self, query: str) -> str | None:
        """Of the first row of one statement, in a transaction that only reads; None: nothing, or NULL. No further row
        is asked for."""
        self._send(b"Q", b"BEGIN READ ONLY\0")
        await self._until_ready()
        self._send(b"P", b"\0" + query.encode() + b"\0" + struct.pack("!h", 0))
        self._send(b"B", b"\0\0" + struct.pack("!hhh", 0, 0, 0))
        self._send(b"E", b"\0" + struct.pack("!i", 1))
        self._send(b"S", b"")
        return await self._until_ready()

    def end(self) -> None:
        self._send(b"X", b"")

    async def _until_ready(self) -> str | None:
        """The first value of the row that comes, if one does."""
        value = None
        while True:
            kind, body = await self._next()
            if kind == b"Z":
                return value
            if kind in (b"G", b"H", b"W"):
                raise Down("the query copies data, which is no value")
            if kind == b"D":
                (columns,) = _unpacked("!h", body)
                (size,) = _unpacked("!i", body[2:]) if columns else (-1,)
                value = None if size < 0 else body[6 : 6 + size].decode("utf-8", "replace")

    async def _next(self) -> tuple[bytes, bytes]:
        """The next message. Raises Refused where it is an error."""
        kind, size = struct.unpack("!ci", await self._reader.readexactly(5))
        self._left -= max(5, size)
        if size < 4:
            raise Down(_NO_SERVER)
        if self._left < 0:
            raise Down(f"it sends more than {MAX_BYTES} bytes")
        body = await self._reader.readexactly(size - 4)
        if kind == b"E":
            fields = {part[:1]: part[1:].decode("ascii", "replace") for part in body.split(b"\0")}
            raise Refused(fields.get(b"C", ""))
        return kind, body

    def _send(self, kind: bytes, body: bytes) -> None:
        self._writer.write(kind + struct.pack("!i", len(body) + 4) + body)


class Scram:
    """The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), once."""

    def __init__(self, password: str) -> None:
        self._password = _prepared(password).encode()
        self._nonce = base64.b64encode(os.urandom(18)).decode()
        self._proof_of_server = b""
        self.is_proved = False

    def first(self) -> bytes:
        # PostgreSQL takes the user from the connection's beginning.
        return f"n,,n=,r={self._nonce}".encode()

    async def answer(self, said: bytes) -> bytes:
        given = _fields(said)
        try:
            nonce, salt, rounds = given["r"], base64.b64decode(given["s"], validate=True), int(given["i"])
        except (KeyError, ValueError, binascii.Error):
            raise Down(_NO_SERVER) from None
        if not nonce.startswith(self._nonce) or nonce == self._nonce or rounds < 1:
            raise Down(_NO_SERVER)
        if rounds > MAX_ROUNDS:
            raise Down(f"it asks for more than {MAX_ROUNDS} rounds of hashing")
        salted = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", self._password, salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        final = f"c=biws,r={nonce}"
        signed = b",".join((self.first()[3:], said, final.encode()))
        proof = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        self._proof_of_server = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        mixed = bytes(one ^ other for one, other in zip(client_key, proof, strict=True))
        return f"{final},p={base64.b64encode(mixed).decode()}".encode()

    def finish(self, said: bytes) -> None:
        expected = base64.b64encode(self._proof_of_server).decode()
        given = _fields(said).get("v", "")
        self.is_proved = bool(self._proof_of_server) and hmac.compare_digest(given.encode(), expected.encode())


def _fields(said: bytes) -> dict[str, str]:
    return {part[:1]: part[2:] for part in said.decode("utf-8", "replace").split(",") if part[1:2] == "="}


def _md5(user: str, password: str, salt: bytes) -> bytes:
    inner = hashlib.md5(f"{password}{user}".encode(), usedforsecurity=False).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt[:4], usedforsecurity=False).hexdigest().encode()


def _prepared(password: str) -> str:
    """As SASLprep (RFC 4013) has it; as it is where that does not allow it, which is what PostgreSQL does."""
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each for each in password if not stringprep.in_table_b1(each)
    )
    found = unicodedata.normalize("NFKC", mapped)
    return password if not found or any(_forbidden(found)) else found


def _forbidden(text: str) -> Iterator[bool]:
    tables = (
        stringprep.in_table_a1, stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3,
        stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7,
        stringprep.in_table_c8, stringprep.in_table_c9,
    )  # fmt: skip
    for each in text:
        yield any(table(each) for table in tables)
    if any(map(stringprep.in_table_d1, text)):  # written from the right: all of it has to be
        yield any(map(stringprep.in_table_d2, text))
        yield not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1]))


def _unpacked(form: str, body: bytes) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, body)
    except struct.error:
        raise Down(_NO_SERVER) from None
