"""docs/database-layer.md, run as it is written, on a database that `ops db init --sample` has made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, selectinload

from db.connection import get_db_session, get_engine
from db.encryption import decrypt_field, encrypt_field
from db.errors import AlreadyExists, Conflict, DecryptionError, NotFound, PermissionDenied, Throttled
from db.models import APIKey, Application, AuditLog, Deployment, Infrastructure, User
from db.repositories import (
    APIKeyRepository,
    ApplicationRepository,
    AuditLogRepository,
    DeploymentRepository,
    InfrastructureRepository,
    StatsRepository,
    UserRepository,
)
from db.service import DatabaseService
from db.services.logins import PAIR
from tests.conftest import SCHEMA, Database, fresh_database
from worker.devstack import Stack
from worker.servers import OWNER_ROLE

DOCUMENT = (Path(__file__).parent.parent / "docs" / "database-layer.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
BASIC, AGAIN, FIELDS, REPOSITORIES, ASYNC = EXAMPLES
SAMPLE = "ops_sample"


@pytest.fixture(scope="module")
def sample_template(stack: Stack) -> str:
    """An empty database in which somebody has typed `ops db init --sample`."""
    with psycopg.connect(stack.postgres.url("postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {SAMPLE} OWNER {OWNER_ROLE}")
    made = Database(SAMPLE, stack)
    environment = os.environ | {"DATABASE_URL": made.url, "OPS_DATABASE_OWNER_URL": made.owner_url, "OPS_USER": "ann"}
    ops = Path(sys.executable).parent / "ops"
    done = subprocess.run([ops, "db", "init", "--sample"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return SAMPLE


@pytest.fixture(autouse=True)
def database(stack: Stack, sample_template: str) -> Iterator[Database]:
    with fresh_database(stack, sample_template) as made:
        yield made


def run(*examples: str) -> dict[str, Any]:
    """Run examples one after the other, as somebody would who types them in; answers the names they leave."""
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "docs/database-layer.md", "exec"), names)
    return names


def trail(resource: str) -> list[AuditLog]:
    with get_db_session() as session:
        return list(reversed(AuditLogRepository(session).search(resource=resource, limit=500).items))


def test_every_example_of_the_document_runs_as_written():
    names = run(*EXAMPLES)
    assert names["decrypted_value"] == "my-secret-key"
    assert "my-secret-key" not in names["encrypted_value"]
    assert names["deployments"] == []
    with get_db_session() as session:
        john = UserRepository(session).require_by_username("john_doe")
        (deployment,) = DeploymentRepository(session).get_user_deployments(john.id, status="pending")
        assert (deployment.version, deployment.application_id, deployment.infrastructure_id) == ("v1.2.3", 1, 1)
        assert john.hashed_password == "$2b$12$..."
        key = APIKeyRepository(session).get_by_name(john.id, "aws", "access_key_id", with_value=True)
        assert key.encrypted_value == "AKIA0987654321EXAMPLE"


def test_a_second_user_of_the_same_name_is_refused_and_a_second_key_replaces_both_with_their_trail():
    run(BASIC)
    before = trail("user")
    with pytest.raises(AlreadyExists, match="a user with this username exists already"):
        run(BASIC)
    assert len(trail("user")) == len(before)
    assert [(entry.action, str(entry.ip_address)) for entry in before][-1] == ("user.created", "192.168.1.1")
    run(BASIC.replace("\nexample_usage()\n", "\n"), AGAIN)
    assert [entry.action for entry in trail("secret")] == ["secret.created", "secret.updated"]
    assert [entry.action for entry in trail("deployment")] == ["deployment.created"]
    shown = str([(entry.changes, entry.details) for entry in trail("secret") + trail("user")])
    assert "AKIA" not in shown
    assert "$2b$" not in shown


def test_the_sample_is_what_the_document_names():
    with get_db_session() as session:
        assert UserRepository(session).require_by_username("admin").role == "admin"
        assert UserRepository(session).require(1).username == "ann"
        assert ApplicationRepository(session).require(1).name == "sample"
        assert InfrastructureRepository(session).require(1).name == "local"


def test_every_table_that_the_document_names_is_there():
    tables = set(re.findall(r"^- `(\w+)` - ", DOCUMENT, re.MULTILINE))
    assert len(tables) == 7
    assert tables <= set(inspect(get_engine()).get_table_names(SCHEMA))


# Encryption/decryption functionality


def test_a_value_is_encrypted_in_the_table_and_plain_on_the_attribute(database):
    run(FIELDS)
    with get_db_session() as session:
        session.add(run(FIELDS)["api_key"])
    with database.connect() as plain:
        ((stored,),) = plain.execute("SELECT encrypted_value FROM api_keys").fetchall()
    assert stored.startswith("v1:")
    assert "my-secret-key" not in stored
    with get_db_session() as session:
        key = session.scalars(select(APIKey)).one()
        assert key.encrypted_value == "my-secret-key"
        assert "my-secret-key" not in repr(key)


def test_a_value_of_another_field_or_a_damaged_one_does_not_open():
    with pytest.raises(DecryptionError):
        decrypt_field(encrypt_field("value", "one"), "another")
    with pytest.raises(DecryptionError):
        decrypt_field(encrypt_field("value")[:-2])


# Repository operations


def test_repositories_get_require_list_add_change_and_delete():
    with get_db_session() as session:
        repository = ApplicationRepository(session)
        made = repository.add(Application(name="shop", command=["deploy"]))
        assert repository.get(made.id) is made
        assert repository.get_by_name("SHOP") is made
        assert repository.change(made, name="store").name == "store"
        assert [row.name for row in repository.list_(limit=1).items] == ["store"]
        assert [row.name for row in repository.page(number=2, size=1).items] == ["sample"]
        repository.delete(made)
        assert repository.get(made.id) is None
        with pytest.raises(NotFound, match="there is no application"):
            repository.require(made.id)


def test_the_slower_of_two_editors_is_told():
    with get_db_session() as one, get_db_session() as two:
        theirs = ApplicationRepository(two).require(1)
        ApplicationRepository(one).change(ApplicationRepository(one).require(1), description="first")
        one.commit()
        with pytest.raises(Conflict, match="changed by somebody else"):
            ApplicationRepository(two).change(theirs, description="second")


# Service layer business logic


def test_what_a_role_does_not_allow_is_refused_and_without_an_actor_the_system_acts():
    with get_db_session() as session:
        viewer = DatabaseService(session).create_user_with_audit("vic", "vic@example.org", role="viewer")
        with pytest.raises(PermissionDenied, match="deploying needs the role operator; vic is viewer"):
            DatabaseService(session, actor=viewer).create_deployment(viewer.id, 1, 1, "v1")
        admin = UserRepository(session).require_by_username("admin")
        asked = DatabaseService(session, actor=admin).create_deployment(admin.id, 1, 1, "v1")
    assert [entry.actor for entry in trail("user")][-1] == "system"
    assert [entry.actor for entry in trail(f"deployment:{asked.id}")] == ["admin"]


def test_the_status_of_a_deployment_follows_the_rules():
    run(BASIC)
    with get_db_session() as session:
        door = DatabaseService(session)
        (deployment,) = door.list_deployments().items
        with pytest.raises(Conflict, match="follows its job"):
            door.update_deployment_status(deployment.id, "success")
        door.cancel_deployment(deployment.id)
        with pytest.raises(Conflict, match="is cancelled and cannot become success"):
            door.update_deployment_status(deployment.id, "success")


def test_failed_logins_are_recorded_with_where_they_came_from_and_slowed_down():
    def guess(n: int) -> None:
        with get_db_session() as session:
            DatabaseService(session).authenticate("admin", f"wrong {n}", ip_address="10.0.0.9", user_agent="curl")

    for n in range(PAIR.at_once):
        guess(n)
    with pytest.raises(Throttled, match="try again in"):
        guess(99)
    failed = [entry for entry in trail("user") if entry.action == "user.login_failed"]
    assert {(str(entry.ip_address), entry.user_agent) for entry in failed} == {("10.0.0.9", "curl")}
    assert len(failed) == PAIR.at_once


# Audit trail creation


def test_every_way_to_change_a_row_is_in_the_trail(database):
    with get_db_session(actor="anna", ip="10.0.0.1", user_agent="curl", request_id="r-1") as session:
        session.add(Application(name="by-orm", command=[]))
        session.flush()
        session.execute(text(f"UPDATE {SCHEMA}.applications SET description = 'by hand' WHERE name = 'by-orm'"))
    with database.connect() as psql:
        psql.execute("DELETE FROM applications WHERE name = 'by-orm'")
    told = [entry for entry in trail("application") if entry.resource_id != "1"]
    assert [entry.action for entry in told] == ["application.created", "application.updated", "application.deleted"]
    assert told[1].changes["description"] == [None, "by hand"]
    assert {(entry.actor, str(entry.ip_address), entry.user_agent, entry.request_id) for entry in told[:2]} == {
        ("anna", "10.0.0.1", "curl", "r-1")
    }
    assert (told[2].actor_type, told[2].actor) == ("database", "ops_app")


def test_what_is_rolled_back_leaves_no_entry_and_no_entry_can_be_changed(database):
    with get_db_session() as session:
        DatabaseService(session).register_application("shop", ["deploy"])
        session.rollback()
    assert [entry.resource_id for entry in trail("application")] == ["1"]
    for role in ("ops_app", OWNER_ROLE):
        with database.connect(role) as plain, pytest.raises(psycopg.errors.InsufficientPrivilege):
            plain.execute("UPDATE audit_logs SET actor = 'nobody'")


# Database relationships


def test_users_have_keys_and_deployments_which_link_applications_and_infrastructure():
    run(BASIC)
    with get_db_session() as session:
        john = session.scalars(
            select(User).where(User.username == "john_doe").options(
                selectinload(User.api_keys), selectinload(User.deployments).selectinload(Deployment.infrastructure)
            )
        ).one()  # fmt: skip
        assert [key.name for key in john.api_keys] == ["aws/access_key_id"]
        (deployment,) = john.deployments
        assert (deployment.user_id, deployment.infrastructure.name) == (john.id, "local")
        full = DeploymentRepository(session).get_with_relations(deployment.id)
        assert (full.application.name, full.job.task) == ("sample", "tasks.deployments.run")


def test_what_was_not_asked_for_is_not_loaded_late():
    run(BASIC)
    with get_db_session() as session:
        deployment = DeploymentRepository(session).require(1)
        with pytest.raises(InvalidRequestError, match="raise"):
            _ = deployment.user
        with pytest.raises(InvalidRequestError, match="raise"):
            _ = UserRepository(session).require(deployment.user_id).api_keys


@pytest.mark.parametrize("kind", [User, Application, Infrastructure])
def test_what_a_deployment_needs_cannot_be_removed_under_it(kind):
    run(BASIC)
    with get_db_session() as session:
        deployment = DeploymentRepository(session).require(1)
        key = getattr(deployment, f"{kind.__name__.lower()}_id")
        repository = {
            User: UserRepository,
            Application: ApplicationRepository,
            Infrastructure: InfrastructureRepository,
        }
        with pytest.raises(Conflict, match="is still used by deployments"):
            repository[kind](session).delete(session.get(kind, key))
        assert counted(session, kind) > 0


def test_with_a_user_go_the_secrets():
    with get_db_session() as session:
        user = DatabaseService(session).create_user_with_audit("eve", "eve@example.org")
        DatabaseService(session).store_api_key(user.id, "aws", "token", "value")
        UserRepository(session).delete(user)
        assert counted(session, APIKey) == 0
    assert [entry.action for entry in trail("secret")] == ["secret.created", "secret.deleted"]


def counted(session: Session, kind: type) -> int:
    return session.scalar(select(func.count()).select_from(kind)) or 0


def test_what_the_table_of_the_data_layer_names_is_there():
    root = Path(__file__).parent.parent
    table = (root / "docs" / "data-layer.md").read_text("utf-8")
    for path in re.findall(r"`((?:tests|db|tasks|worker|migrations|docs|\.ci)/[\w./*-]*)`", table):
        assert list(root.glob(path.rstrip("/"))), path
    for name in re.findall(r"`StatsRepository\.(\w+)`", table):
        assert hasattr(StatsRepository, name), name
    for name in re.findall(r"`DatabaseService\.([a-z_]+)`", table):
        assert hasattr(DatabaseService, name), name
    for path in re.findall(r"\]\(([\w./-]+)\)", table):
        assert (root / "docs" / path).exists(), path
    for module, name in re.findall(r"`(db(?:\.\w+)+)\.(\w+)`", table):
        assert hasattr(import_module(module), name), f"{module}.{name}"
