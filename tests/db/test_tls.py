"""The database over TLS, checked to the certificate: a real server, certificates made here."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import pytest
from sqlalchemy import text

from db.connection import get_db_session, open_ledger
from db.errors import DatabaseUnavailable
from tests.certificates import certificate
from tests.conftest import settings_from

#: The wheel's server has no TLS; Debian's has.
BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
pytestmark = pytest.mark.skipif(BINARIES is None, reason="needs a PostgreSQL with TLS (Debian's package: postgresql)")
PASSWORD = "a password for this test only"


@dataclass
class Secured:
    """A server that speaks TLS only."""

    folder: Path
    port: int

    def url(self, *, host: str = "127.0.0.1", mode: str = "verify-full", root: str = "ca.pem") -> str:
        return (
            f"postgresql://postgres:{PASSWORD.replace(' ', '%20')}@{host}:{self.port}/postgres"
            f"?sslmode={mode}&sslrootcert={self.folder / root}"
        )


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    folder = Path(tempfile.mkdtemp(prefix="ops-tls-"))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    certificate(folder, "server", certificate(folder, "ca"))
    certificate(folder, "stranger")
    (folder / "password").write_text(PASSWORD)
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, user)
    with socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        as_user = {"user": user, "extra_groups": []} if os.geteuid() == 0 else {}
        command = [str(BINARIES / program), "-D", str(folder / "data"), *arguments]
        with (folder / "out").open("ab") as out:
            subprocess.run(command, check=True, cwd="/", stdout=out, stderr=out, **as_user)

    try:
        run("initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync")
        (folder / "data/pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        run(
            "pg_ctl", "-w", "-l", str(folder / "data/log"), "-o",
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c ssl=on"
            f" -c ssl_cert_file={folder}/server.pem -c ssl_key_file={folder}/server.key -c fsync=off", "start",
        )  # fmt: skip
        yield Secured(folder, port)
    finally:
        if (folder / "data/postmaster.pid").exists():
            run("pg_ctl", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def is_encrypted() -> bool:
    with get_db_session() as session:
        return bool(session.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))


def test_a_verified_server_is_spoken_to_encrypted(secured: Secured) -> None:
    with settings_from({"DATABASE_URL": secured.url()}):
        assert is_encrypted()
        ledger = open_ledger("test")
        rows = ledger._query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", ())
        ledger.close()
        assert rows == [{"ssl": True}]
    # As an application with asyncpg spells it.
    spelled = secured.url(mode="require").replace("postgresql://", "postgresql+asyncpg://").replace("sslmode", "ssl")
    with settings_from({"DATABASE_URL": spelled}):
        assert is_encrypted()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"root": "stranger.pem"}, "certificate verify failed"),
        ({"host": "localhost"}, "does not match host name"),
        ({"mode": "disable"}, "no encryption"),
    ],
    ids=["unknown authority", "another name", "plain text"],
)
def test_nobody_else_is_spoken_to(secured: Secured, wrong: dict[str, str], says: str) -> None:
    with settings_from({"DATABASE_URL": secured.url(**wrong)}):
        with pytest.raises(DatabaseUnavailable) as error:
            is_encrypted()
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert PASSWORD not in str(error.value)
