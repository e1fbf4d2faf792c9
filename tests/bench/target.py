"""A web server to be checked, in a process of its own, so that its time is nobody's: with TLS and without, one
connection for each request. ``/answered`` says how many it has answered."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from tests.certificates import self_signed
from tests.e2e.platform import ROOT


class Target:
    """Where it listens."""

    def __init__(self, port: int, tls_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self.tls_url = f"https://127.0.0.1:{tls_port}/"

    def answered(self) -> int:
        with urlopen(f"{self.url}answered") as answer:
            return int(answer.read())


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    certificate = self_signed(folder / "target.pem")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.target", str(certificate)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield Target(*map(int, process.stdout.readline().split()))
    finally:
        process.kill()
        process.communicate()


async def _serve(certificate: str) -> None:
    import ssl

    answered = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            body = b"ok"
            if asked.startswith(b"GET /answered "):
                body = str(answered).encode()
            else:
                answered += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
            await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    plain = await asyncio.start_server(speak, "127.0.0.1", 0, backlog=1024)
    secure = await asyncio.start_server(speak, "127.0.0.1", 0, backlog=1024, ssl=context)
    print(*(server.sockets[0].getsockname()[1] for server in (plain, secure)), flush=True)
    await asyncio.gather(plain.serve_forever(), secure.serve_forever())


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
