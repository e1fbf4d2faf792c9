"""`ops env` makes what docker-compose.yml mounts, each file for the one user that reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import redis
import yaml
from dotenv import dotenv_values
from sqlalchemy.engine import make_url

from db.errors import Refused
from tests.worker.cli.conftest import Ops
from worker.cli import composefiles
from worker.devstack import Stack

SETTINGS = {"ENCRYPTION_KEY": "key", "SECRET_KEY": "s", "OPS_AUDIT_SEAL_KEY": "seal", "FLOWER_BASIC_AUTH": "ops:pw",
            "OPS_METRICS_TOKEN": "token"}  # fmt: skip


def test_each_secret_is_its_readers_alone_in_a_folder_that_is_closed(tmp_path: Path) -> None:
    made = composefiles.write(tmp_path, SETTINGS)
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in made) == sorted(path.name for path in folder.iterdir())
    for path in made:
        servers = path.name in composefiles.OF_SERVERS
        mode, uid = stat.S_IMODE(path.stat().st_mode), path.stat().st_uid
        if os.getuid():
            assert (mode, uid) == (0o644 if servers else 0o600, os.getuid())
        else:
            assert (mode, uid) == (0o600, composefiles.SERVER_UID if servers else composefiles.IMAGE_UID)


def test_every_file_that_compose_mounts_is_made_and_the_passwords_fit_together(tmp_path: Path) -> None:
    composefiles.write(tmp_path, SETTINGS)
    root = Path(__file__).parents[3]
    text = (root / "docker-compose.yml").read_text("utf-8")
    read = {path.name: path.read_text().strip() for path in (tmp_path / "secrets").iterdir()}
    assert {line.split(":")[0].strip() for line in text.splitlines() if "{file: ./secrets/" in line} == set(read)
    assert make_url(read["database_admin_url"]).password == read["postgres_password"]
    app, pooled = make_url(read["database_url"]), make_url(read["database_url_pooled"])
    assert (app.username, app.password) == (pooled.username, pooled.password)
    assert read["pgbouncer_users"] == f'"{app.username}" "{app.password}"'
    assert make_url(read["database_owner_url"]).username == "ops_owner"
    assert f">{make_url(read['broker_url']).password} " in read["valkey_acl"]
    assert read["encryption_key"] == "key"
    assert len({read[name] for name in ("database_admin_url", "database_owner_url", "database_url")}) == 3


def test_each_container_is_given_the_secrets_that_it_needs_and_no_others() -> None:
    """Whoever deploys runs what he likes in a `deployments` container, as the user that reads its secrets: the key that
    seals the trail is none of them. And strangers speak to `serve`."""
    text = (Path(__file__).parents[3] / "docker-compose.yml").read_text("utf-8")
    services = yaml.safe_load(text)["services"]
    assert [name for name, service in services.items() if "audit_seal_key" in service.get("secrets", ())] == ["control"]
    assert set(services["serve"]["secrets"]) == {"database_url", "database_url_pooled", "metrics_token"}
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if str(value).startswith("/run/secrets/") and "$" not in value:
                assert value.removeprefix("/run/secrets/") in service["secrets"], (name, variable)


def test_what_is_there_stays_and_half_a_set_is_refused(tmp_path: Path) -> None:
    composefiles.write(tmp_path, SETTINGS)
    folder = tmp_path / "secrets"
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert composefiles.write(tmp_path, SETTINGS | {"SECRET_KEY": "another"}) == []
    (folder / "encryption_key").unlink()
    assert [path.name for path in composefiles.write(tmp_path, SETTINGS)] == ["encryption_key"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    (folder / "database_url").unlink()
    with pytest.raises(Refused, match="lacks database_url"):
        composefiles.write(tmp_path, SETTINGS)


def test_the_uid_that_containers_run_as_stands_where_compose_reads_it(
    tmp_path: Path, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ops("env").code == 0
    values = dotenv_values(tmp_path / ".env")
    assert (values["OPS_UID"], values["OPS_GID"]) == tuple(map(str, composefiles.owner()))
    assert values["OPS_UID"] != "0"


def test_the_brokers_user_may_do_what_the_platform_does_and_nothing_that_hurts_others(stack: Stack) -> None:
    """The compose stack's tests run the whole platform with it; here is what must stay refused."""
    admin = redis.Redis(unix_socket_path=str(stack.valkey.socket_path))
    name, *rules = composefiles.acl("a-password").splitlines()[2].split()[1:]
    admin.execute_command("ACL", "SETUSER", name, *rules)
    try:
        ours = redis.Redis(unix_socket_path=str(stack.valkey.socket_path), username=name, password="a-password")
        ours.set("ops.status", "", px=1)
        ours.lpush("control", "x")
        assert ours.rpop("control") == b"x"
        for command in ("FLUSHALL", "CONFIG GET *", "KEYS *", "SHUTDOWN", "ACL LIST", "MONITOR", "GET ops.status",
                        "LPUSH somebody x", "PUBLISH news x", "CLIENT LIST", "EVAL return 0",
                        "FUNCTION LIST"):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                ours.execute_command(*command.split())
    finally:
        admin.execute_command("ACL", "DELUSER", name)
