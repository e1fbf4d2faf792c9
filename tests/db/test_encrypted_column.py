"""A column of any model: one bad value hides no other, and no query compares what cannot be compared."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Text, and_, delete, func, literal, not_, or_, select, text, type_coerce, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from db.encryption import Encrypted, Keyring, MasterKey, Unreadable
from db.errors import DecryptionError
from db.models import APIKey, User
from db.services import secrets
from tests.conftest import Database, settings_from

SECRET = bytes(range(32))
RING = Keyring([MasterKey(SECRET, "now")])

any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture
def owner(session: Session) -> User:
    user = User(username="anna", email="anna@example.org")
    session.add(user)
    session.flush()
    return user


# Values that do not open ----------------------------------------------------------------------------------------------


def bad_row(session: Session, owner: User, sql: Callable[..., list[tuple]]) -> list[APIKey]:
    """Three secrets, the second of which names a key that nobody holds."""
    for n in range(3):
        session.add(APIKey(user_id=owner.id, service_name="s", key_name=f"k{n}", encrypted_value=f"value {n}"))
    session.commit()
    session.expire_all()
    sql("UPDATE api_keys SET encrypted_value = 'v1:lost:token' WHERE key_name = 'k1'")
    return list(session.scalars(select(APIKey).order_by(APIKey.id)))


def test_one_bad_row_does_not_hide_the_others(session, owner, sql):
    good, bad, other = bad_row(session, owner, sql)
    assert (good.encrypted_value, other.encrypted_value) == ("value 0", "value 2")
    assert isinstance(bad.encrypted_value, Unreadable)
    assert "***" in repr(bad)
    assert repr(bad.encrypted_value) == (
        "<unreadable api_keys.encrypted_value, key lost: this process does not hold that key>"
    )


@pytest.mark.parametrize(
    "use",
    [
        str, len, bool, bytes, hash, list, int, sorted, "{}".format, "%s".__mod__, "".join,
        lambda value: f"{value}", lambda value: f"{value:>10}", lambda value: value == "x",
        lambda value: value != "x", lambda value: value < "x", lambda value: value in {"x"}, lambda value: "x" in value,
        lambda value: value + "x", lambda value: "x" + value, lambda value: value * 2, lambda value: value[0],
        lambda value: value % (), lambda value: value.encode(), lambda value: value.strip(), lambda value: not value,
        lambda value: print(value), lambda value: value and "x",
    ],
)  # fmt: skip
def test_using_a_value_that_does_not_open_says_where_it_stands(use):
    value = Unreadable("cards.pan", "lost", "this process does not hold that key")
    with pytest.raises(DecryptionError) as error:
        use(value)
    found = error.value
    assert (found.table, found.column, found.key_id) == ("cards", "pan", "lost")
    assert found.reason == "this process does not hold that key"


def test_what_is_written_in_c_does_not_take_it_for_an_empty_text():
    value = Unreadable("cards.pan", "lost", "gone")
    for use in ("".join, json.dumps, io.StringIO().write, psycopg.adapt.Transformer().as_literal):
        with pytest.raises((TypeError, psycopg.ProgrammingError, DecryptionError)):
            use([value] if use == "".join else value)


def test_a_value_that_does_not_open_can_be_replaced_and_is_not_written_elsewhere(session, owner, sql):
    good, bad, _ = bad_row(session, owner, sql)
    bad.encrypted_value = "anew"
    session.commit()
    assert session.scalar(select(APIKey.encrypted_value).where(APIKey.key_name == "k1")) == "anew"
    sql("UPDATE api_keys SET encrypted_value = 'v1:lost:token' WHERE key_name = 'k1'")
    session.refresh(bad)
    good.encrypted_value = bad.encrypted_value
    with pytest.raises(DecryptionError, match="key lost"):
        session.flush()


def test_a_deployment_does_not_get_a_secret_that_does_not_open(session, owner, sql):
    bad_row(session, owner, sql)
    wanted = {"A": "s/k0", "B": "s/k1"}
    with pytest.raises(DecryptionError) as error:
        secrets.open_all(session, owner_id=owner.id, wanted=wanted)
    assert str(error.value) == "secret s/k1 does not open with key lost: this process does not hold that key"
    session.rollback()
    secrets.store(session, user_id=owner.id, service_name="s", key_name="k1", value="anew")
    assert secrets.open_all(session, owner_id=owner.id, wanted=wanted) == {"A": "value 0", "B": "anew"}


def test_the_mark_and_its_error_travel_without_what_is_stored():
    value = Unreadable("cards.pan", "lost", "gone")
    for travelled in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert repr(travelled) == repr(value)
    error = pickle.loads(pickle.dumps(value.error))
    assert (str(error), error.reason) == (str(value.error), "gone")


def test_what_stands_in_a_column_is_not_repeated_as_a_keys_id():
    with pytest.raises(DecryptionError) as error:
        RING.open("v1:4111 1111 1111 1111:pin", "cards.pan")
    assert "4111" not in str(error.value)


# The column of any model ----------------------------------------------------------------------------------------------


class Shop(DeclarativeBase):
    pass


class Card(Shop):
    __tablename__ = "cards"

    id: Mapped[int] = mapped_column(primary_key=True)
    holder: Mapped[str]
    pan: Mapped[str | None] = mapped_column(Encrypted("cards.pan"))


@given(st.one_of(st.none(), any_text))
def test_any_value_comes_back_through_the_column_type(value):
    kind, dialect = Card.__table__.c.pan.type, postgresql.dialect()
    with settings_from({"ENCRYPTION_KEY": base64.urlsafe_b64encode(SECRET).decode()}):
        stored = kind.process_bind_param(value, dialect)
        assert (stored is None) is (value is None)
        assert stored is None or stored.isascii()
        assert kind.process_result_value(stored, dialect) == value


@pytest.mark.parametrize(
    "build",
    [
        lambda: select(Card).where(Card.pan.ilike("4%")),
        lambda: select(Card).where(Card.pan.contains("4")),
        lambda: select(Card).where(Card.pan.endswith("4")),
        lambda: select(Card).where(Card.pan.not_in(["4"])),
        lambda: select(Card).where(Card.pan.regexp_match("4")),
        lambda: select(Card).where(Card.pan.match("4")),
        lambda: select(Card).where(Card.pan.is_("4")),
        lambda: select(Card).where(Card.pan == Card.holder),
        lambda: select(Card).where(Card.pan.label("x") == "4"),
        lambda: select(Card).where(aliased(Card).pan == "4"),
        lambda: select(Card).where(select(Card.pan).subquery().c.pan == "4"),
        lambda: select(Card).where(Card.pan.in_(select(Card.holder))),
        lambda: select(Card).order_by(Card.pan.desc().nulls_last()),
        lambda: select(Card).order_by(Card.pan.collate("C")),
        lambda: select(Card.pan.concat("x")),
        lambda: select(Card.pan.distinct()),
        lambda: select(Card).where(Card.pan.any_() == "4"),
    ],
)
def test_no_way_to_compare_builds_a_query(build):
    with pytest.raises(TypeError, match="encrypted column cannot be compared"):
        build()


@pytest.mark.parametrize(
    "statement",
    [
        select(Card).where(Card.holder == Card.pan),
        select(Card.id).where(or_(Card.id == 1, literal("4") == Card.pan)),
        update(Card).where(literal("4") == Card.pan).values(holder="x"),
        delete(Card).where(not_(and_(Card.id == 1, Card.holder.like(Card.pan)))),
        select(Card.__table__).order_by(Card.__table__.c.pan),
        select(Card.__table__.c.id).group_by(Card.__table__.c.pan),
        select(Card.id).order_by(func.lower(Card.pan)),
        select(Card.id).join(User, and_(User.id == Card.id, User.username == Card.pan)),
        select(func.count()).group_by(Card.id).having(literal("4") == Card.pan),
    ],
)
def test_what_only_the_whole_query_shows_is_refused_before_it_is_sent(session, statement):
    for execute in (session.execute, session.connection().execute):
        with pytest.raises(TypeError, match="encrypted column cannot be compared"):
            execute(statement)
    assert session.scalar(text("SELECT 1")) == 1  # nothing of it reached the server, which has no such table


def test_a_look_at_what_is_stored_is_possible_where_it_is_meant(session, owner):
    session.add(APIKey(user_id=owner.id, service_name="s", key_name="k", encrypted_value="x"))
    session.flush()
    stored = type_coerce(APIKey.encrypted_value, Text())
    found = session.scalars(select(APIKey.id).where(stored.like("v1:%")).order_by(stored)).all()
    assert len(found) == 1


def test_alembic_renders_it_as_text_in_an_applications_own_migration(database: Database, tmp_path: Path):
    config = Config(str(tmp_path / "alembic.ini"), stdout=io.StringIO())
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    command.init(config, str(tmp_path / "migrations"))
    (tmp_path / "migrations" / "env.py").write_text(APPLICATION_ENV)
    url = database.stack.database_url(database.name, role="postgres").replace("postgresql:", "postgresql+psycopg:")
    config.attributes["url"] = url

    def revise(message: str) -> str:
        made = command.revision(config, message=message, autogenerate=True)
        return Path(made.path).read_text()

    made = revise("cards")
    assert "sa.Column('pan', sa.Text(), nullable=True)" in made
    assert "Encrypted" not in made
    with settings_from({"ENCRYPTION_KEY": ""}):
        command.upgrade(config, "head")  # needs no key
    again = revise("nothing")
    assert "pass" in again.partition("def upgrade")[2]
    assert "op." not in again.partition("def upgrade")[2]


APPLICATION_ENV = """
from alembic import context
from sqlalchemy import create_engine, pool
from db.encryption import render_item
from tests.db.test_encrypted_column import Shop

with create_engine(context.config.attributes["url"], poolclass=pool.NullPool).connect() as connection:
    context.configure(
        connection=connection, target_metadata=Shop.metadata, render_item=render_item, version_table="shop_version",
        compare_type=True, include_name=lambda name, kind, parents: kind != "table" or name == "cards",
    )
    with context.begin_transaction():
        context.run_migrations()
"""
