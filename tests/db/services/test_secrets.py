"""Secrets: one's own only, opened late, each opening recorded."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from db.encryption import new_key
from db.errors import DecryptionError, InvalidInput, NotFound, PermissionDenied
from db.repositories import APIKeyRepository, AuditLogRepository
from db.service import DatabaseService
from db.services import secrets
from tests.conftest import SCHEMA
from tests.db.services.conftest import encryption_key, one_line, rows

VALUE = "AKIA1234567890EXAMPLE"


def stored(session, anna, value=VALUE, **fields):
    return secrets.store(
        session, **{"user_id": anna.id, "service_name": "aws", "key_name": "token", "value": value} | fields
    )


def test_the_example_of_the_documentation_runs_as_written(session, anna):
    key = DatabaseService(session).store_api_key(
        user_id=anna.id, service_name="aws", key_name="access_key_id", key_value=VALUE
    )
    session.commit()
    session.expire_all()
    assert (key.name, key.encrypted_value) == ("aws/access_key_id", VALUE)


def test_storing_again_replaces_the_value(session, anna):
    first = stored(session, anna)
    assert stored(session, anna, "another").id == first.id
    session.expire_all()
    assert secrets.open_all(session, owner_id=anna.id, wanted={"A": "aws/token"}) == {"A": "another"}


def test_a_secret_whose_key_is_lost_can_be_replaced_and_removed(session, anna):
    stored(session, anna)
    session.commit()
    session.expunge_all()
    with encryption_key(new_key()):
        with pytest.raises(DecryptionError):
            secrets.open_all(session, owner_id=anna.id, wanted={"A": "aws/token"})
        session.rollback()
        stored(session, anna, "another")
        assert secrets.open_all(session, owner_id=anna.id, wanted={"A": "aws/token"}) == {"A": "another"}
        session.execute(text(f"UPDATE {SCHEMA}.api_keys SET encrypted_value = 'v1:gone:x'"))
        session.expunge_all()
        secrets.remove(session, user_id=anna.id, name="aws/token")
    assert rows(session)["api_keys"] == 0


def test_each_opening_is_recorded_with_what_it_was_for(session, anna):
    key = stored(session, anna)
    opened = secrets.open_all(session, owner_id=anna.id, wanted={"A": "aws/token", "B": "aws/token"}, deployment_id=7)
    assert opened == {"A": VALUE, "B": VALUE}
    found = AuditLogRepository(session).search(action="secret.opened").items
    assert [(entry.resource_id, entry.details) for entry in found] == [
        (str(key.id), {"name": "aws/token", "deployment_id": 7})
    ] * 2


def test_a_secret_of_somebody_else_is_as_if_it_were_not_there(session, anna, person):
    stored(session, anna)
    with pytest.raises(NotFound) as error:
        secrets.open_all(session, owner_id=person("ben").id, wanted={"A": "aws/token"})
    assert one_line(error) == "there is no secret aws/token"
    assert error.value.hint == "ops secret set aws/token"


def test_one_manages_ones_own_secrets_and_an_admin_everybodys(session, anna, person):
    viewer, operator, admin = person("vic", "viewer"), person("ben"), person("root", "admin")
    stored(session, viewer, actor=viewer)
    for stranger in (viewer, operator):
        with pytest.raises(PermissionDenied, match="needs the role admin"):
            stored(session, anna, actor=stranger)
        with pytest.raises(PermissionDenied, match="needs the role admin"):
            secrets.remove(session, user_id=anna.id, name="aws/token", actor=stranger)
    stored(session, anna, actor=admin)
    secrets.remove(session, user_id=anna.id, name="aws/token", actor=admin)
    viewer.is_active = False
    with pytest.raises(PermissionDenied, match="vic is disabled"):
        stored(session, viewer, actor=viewer)


def test_what_cannot_be_a_secret_is_refused_without_showing_it(session, anna):
    before = rows(session)
    for field, value in (
        ("service_name", ""),
        ("service_name", "a/b"),
        ("key_name", "line\n"),
        ("key_name", "x" * 64),
        ("value", ""),
        ("value", "sec\0ret"),
        ("value", "sec\ud800ret"),
        ("value", "secret" * 20_000),
    ):
        with pytest.raises(InvalidInput) as error:
            stored(session, anna, **{field: value})
        message = one_line(error)
        assert message.startswith(field)
        assert "sec" not in message
    assert rows(session) == before


def test_a_secret_for_nobody_is_not_found(session):
    with pytest.raises(NotFound, match="there is no user 42"):
        secrets.store(session, user_id=42, service_name="aws", key_name="token", value=VALUE)


def test_what_is_no_name_is_refused_with_an_example(session, anna):
    for name in ("", "aws", "/", "aws/", "/token"):
        with pytest.raises(InvalidInput, match="SERVICE/NAME, for example aws/access_key"):
            secrets.remove(session, user_id=anna.id, name=name)


def test_removing_what_is_not_there_is_not_found(session, anna):
    with pytest.raises(NotFound, match="there is no secret aws/token"):
        secrets.remove(session, user_id=anna.id, name="aws/token")


def test_a_list_of_secrets_opens_none(session, anna):
    stored(session, anna)
    session.commit()
    session.expunge_all()
    with encryption_key(""):
        assert [key.name for key in APIKeyRepository(session).get_user_keys(anna.id)] == ["aws/token"]
        page = APIKeyRepository(session).list_with_owners()
        assert [(key.name, key.user.username) for key in page.items] == [("aws/token", "anna")]
    assert AuditLogRepository(session).search(action="secret.opened").items == []


def test_a_value_too_short_to_be_masked_is_refused(session, anna):
    with pytest.raises(InvalidInput, match=r"value: .* at least 4 characters"):
        stored(session, anna, "abc")
