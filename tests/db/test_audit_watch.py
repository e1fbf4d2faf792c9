"""An application's own tables under audit: whatever changes a row, however the table is made and whoever owns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.conftest import SCHEMA, Database
from worker.servers import OWNER_ROLE

Sql = Callable[..., list[tuple]]


@pytest.fixture
def owner(database: Database) -> Iterator[psycopg.Connection]:
    """The role that owns the tables."""
    with database.connect(OWNER_ROLE) as connection:
        yield connection


class TestWatch:
    """An application's own tables, put under audit by their owner."""

    @pytest.fixture(autouse=True)
    def _application(self, owner: psycopg.Connection) -> None:
        owner.execute("CREATE SCHEMA app")
        owner.execute("GRANT USAGE ON SCHEMA app TO ops_app")

    def watch(self, owner: psycopg.Connection, columns: str, arguments: str = "") -> None:
        owner.execute(f'CREATE TABLE app."Order items" ({columns})')
        owner.execute('GRANT SELECT, INSERT, UPDATE, DELETE ON app."Order items" TO ops_app')
        owner.execute(f"SELECT ops_audit_watch('app.\"Order items\"'{arguments})")

    def told(self, sql: Sql) -> list[tuple]:
        return sql(
            "SELECT action, resource_id, changes FROM audit_logs WHERE resource_type IN ('Order items', 'item')"
            " ORDER BY id"
        )

    def test_what_is_redacted_is_hidden_and_what_is_ignored_is_left_out(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, price int, card text, seen int", ", '{card}', '{seen}', 'item'")
        sql("INSERT INTO app.\"Order items\" VALUES (1, 10, 'visa-1234', 5)")
        sql('UPDATE app."Order items" SET seen = 6')
        sql('UPDATE app."Order items" SET price = 11, card = NULL')
        assert self.told(sql) == [
            ("item.created", "1", {"id": [None, 1], "price": [None, 10], "card": [None, "[secret]"]}),
            ("item.updated", "1", {"price": [10, 11], "card": ["[secret]", None]}),
        ]

    @pytest.mark.parametrize(("kind", "value"), [("int", "5"), ("jsonb", "'{\"id\": 7}'"), ("text", "'{}'")])
    def test_columns_may_have_any_name(self, sql: Sql, owner, kind, value):
        """Those by which the trigger itself calls rows and tables among them."""
        names = ("x", "n", "o", "a", "c", "d", "k", "old", "new", "key", "keys", "noun", "secret", "new_rows")
        self.watch(owner, "id int PRIMARY KEY, " + ", ".join(f"{name} {kind}" for name in names))
        sql(f'INSERT INTO app."Order items" VALUES (1{f", {value}" * len(names)})')
        sql('UPDATE app."Order items" SET x = NULL')
        sql('DELETE FROM app."Order items"')
        (_, _, made), (_, _, changed), (_, key, gone) = self.told(sql)
        assert set(made) == {"id", *names}
        assert (list(changed), changed["x"][1]) == (["x"], None)
        assert (key, set(gone)) == ("1", {"id", *names} - {"x"})

    def test_rows_of_a_composite_key_are_told_apart(self, sql: Sql, owner):
        self.watch(owner, "b text, a text, n int, PRIMARY KEY (a, b)")
        sql("INSERT INTO app.\"Order items\" (a, b, n) VALUES ('x/y', 'z', 1), ('x', 'y/z', 2), ('x\\', '/', 3)")
        sql('UPDATE app."Order items" SET n = n + 10')
        updated = [(key, changes["n"]) for action, key, changes in self.told(sql) if action.endswith("updated")]
        assert sorted(updated) == [("x/y\\/z", [2, 12]), ("x\\/y/z", [1, 11]), ("x\\\\/\\/", [3, 13])]

    def test_a_table_without_a_primary_key_is_refused_with_a_reason(self, owner):
        with pytest.raises(psycopg.errors.RaiseException, match="has no primary key"):
            self.watch(owner, "a int")

    def test_watching_again_changes_what_is_redacted_and_unwatching_ends_it(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, card text")
        owner.execute("SELECT ops_audit_watch('app.\"Order items\"', '{card}')")
        sql("INSERT INTO app.\"Order items\" VALUES (1, 'visa-1234')")
        owner.execute("SELECT ops_audit_unwatch('app.\"Order items\"')")
        sql('DELETE FROM app."Order items"')
        assert self.told(sql) == [("Order items.created", "1", {"id": [None, 1], "card": [None, "[secret]"]})]

    def test_a_merge_is_recorded_as_what_became_of_each_row(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, n int")
        sql('INSERT INTO app."Order items" VALUES (1, 1), (2, 2)')
        sql(
            'MERGE INTO app."Order items" t USING (VALUES (1), (2), (3)) s (id) ON t.id = s.id'
            " WHEN MATCHED AND t.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET n = 9"
            " WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0)"
        )
        assert sorted((action.split(".")[1], key) for action, key, _ in self.told(sql)[2:]) == [
            ("created", "3"),
            ("deleted", "1"),
            ("updated", "2"),
        ]

    def test_what_carries_a_misspelt_secret_is_refused(self, owner):
        with pytest.raises(psycopg.errors.UndefinedColumn, match="has no column crad"):
            self.watch(owner, "id int PRIMARY KEY, card text", ", '{crad}'")

    def test_a_key_that_must_not_be_shown_is_refused(self, owner):
        with pytest.raises(psycopg.errors.RaiseException, match="cannot be redacted"):
            self.watch(owner, "card text PRIMARY KEY", ", '{card}'")

    def test_what_is_no_table_is_refused(self, owner):
        owner.execute("CREATE VIEW app.v AS SELECT 1 AS id")
        with pytest.raises(psycopg.errors.WrongObjectType, match="is not a table"):
            owner.execute("SELECT ops_audit_watch('app.v')")

    def test_a_renamed_secret_is_not_shown_nor_anything_else_until_the_table_is_watched_again(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, n int, card text", ", '{card}'")
        owner.execute('ALTER TABLE app."Order items" RENAME card TO card_number')
        sql("INSERT INTO app.\"Order items\" VALUES (1, 5, 'visa-1234')")
        owner.execute("SELECT ops_audit_watch('app.\"Order items\"', '{card_number}')")
        sql("UPDATE app.\"Order items\" SET n = 6, card_number = 'visa-5678'")
        secret = "[secret]"
        assert self.told(sql) == [
            ("Order items.created", "1", {"id": [None, secret], "n": [None, secret], "card_number": [None, secret]}),
            ("Order items.updated", "1", {"n": [5, 6], "card_number": [secret, secret]}),
        ]

    def test_a_renamed_secret_is_not_shown_when_another_column_takes_its_name(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, card text", ", '{card}'")
        owner.execute('ALTER TABLE app."Order items" RENAME card TO card_number')
        owner.execute('ALTER TABLE app."Order items" ADD card text')
        sql("INSERT INTO app.\"Order items\" VALUES (1, 'visa-1234', 'x')")
        ((_, _, changes),) = self.told(sql)
        assert changes == {"id": [None, 1], "card_number": [None, "[secret]"], "card": [None, "[secret]"]}

    def test_a_renamed_key_still_names_the_rows(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, n int")
        sql('INSERT INTO app."Order items" VALUES (1, 1), (2, 2)')
        owner.execute('ALTER TABLE app."Order items" RENAME id TO number')
        sql('UPDATE app."Order items" SET n = 9 WHERE number = 2')
        assert self.told(sql)[2:] == [("Order items.updated", "2", {"n": [2, 9]})]

    def test_a_generated_column_is_recorded_and_hidden_when_it_shows_a_secret(self, sql: Sql, owner):
        self.watch(
            owner,
            "id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, card text,"
            " last_four text GENERATED ALWAYS AS (right(card, 4)) STORED",
            ", '{card}'",
        )
        sql("INSERT INTO app.\"Order items\" VALUES (1, 5, DEFAULT, 'visa-1234')")
        sql('UPDATE app."Order items" SET n = 6')
        created, updated = (changes for _, _, changes in self.told(sql))
        assert (created["twice"], created["card"]) == ([None, 10], [None, "[secret]"])
        assert created["last_four"] == [None, "[secret]"]
        assert updated == {"n": [5, 6], "twice": [10, 12]}

    def test_an_upsert_and_copy_are_recorded(self, database: Database, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY, n int")
        with database.connect() as app, app.cursor().copy('COPY app."Order items" FROM STDIN') as copy:
            copy.write_row((1, 1))
            copy.write_row((2, 2))
        sql('INSERT INTO app."Order items" VALUES (2, 7), (3, 3) ON CONFLICT (id) DO UPDATE SET n = excluded.n')
        assert sorted(self.told(sql)) == [
            ("Order items.created", "1", {"id": [None, 1], "n": [None, 1]}),
            ("Order items.created", "2", {"id": [None, 2], "n": [None, 2]}),
            ("Order items.created", "3", {"id": [None, 3], "n": [None, 3]}),
            ("Order items.updated", "2", {"n": [2, 7]}),
        ]

    def test_what_a_truncation_takes_along_is_recorded(self, sql: Sql, owner):
        self.watch(owner, "id int PRIMARY KEY")
        owner.execute('CREATE TABLE app.parts (id int PRIMARY KEY, item int REFERENCES app."Order items")')
        owner.execute("SELECT ops_audit_watch('app.parts', noun => 'item')")
        owner.execute('INSERT INTO app."Order items" VALUES (1), (2)')
        owner.execute("INSERT INTO app.parts VALUES (1, 1)")
        owner.execute('TRUNCATE app."Order items" CASCADE')
        rows = sql("SELECT resource_type, details->'rows' FROM audit_logs WHERE action LIKE '%%.truncated'")
        assert sorted(rows) == [("Order items", 2), ("item", 1)]

    def test_rows_of_partitions_are_recorded_whichever_table_a_statement_names(self, sql: Sql, owner):
        owner.execute("CREATE TABLE app.items (id int, n int, card text, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
        owner.execute("CREATE TABLE app.items_a (card text, n int, id int NOT NULL)")
        owner.execute("ALTER TABLE app.items ATTACH PARTITION app.items_a FOR VALUES FROM (0) TO (10)")
        owner.execute("CREATE TABLE app.items_b PARTITION OF app.items FOR VALUES FROM (10) TO (20)")
        owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA app TO ops_app")
        owner.execute("SELECT ops_audit_watch('app.items', '{card}', noun => 'item')")
        sql("INSERT INTO app.items VALUES (1, 1, 'visa')")
        sql("INSERT INTO app.items_b VALUES (11, 1, 'visa')")
        sql("UPDATE app.items_a SET n = 2")
        sql("UPDATE app.items SET id = 12 WHERE id = 1")
        sql("DELETE FROM app.items")
        owner.execute("INSERT INTO app.items VALUES (2, 2)")
        owner.execute("TRUNCATE app.items")
        told = [(action.removeprefix("item."), key) for action, key, _ in self.told(sql)]
        assert told[:3] == [("created", "1"), ("created", "11"), ("updated", "1")]
        assert sorted(told[3:5]) == [("created", "12"), ("deleted", "1")]
        assert sorted(told[5:8]) == [("created", "2"), ("deleted", "11"), ("deleted", "12")]
        assert sql("SELECT details FROM audit_logs WHERE action = 'item.truncated' AND NOT details ? 'partition'") == [
            ({"rows": 1},)
        ]
        assert "visa" not in str(sql("SELECT changes FROM audit_logs"))

    def test_a_partition_that_came_later_is_recorded_after_watching_again(self, sql: Sql, owner):
        owner.execute("CREATE TABLE app.items (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        owner.execute("SELECT ops_audit_watch('app.items', noun => 'item')")
        owner.execute("CREATE TABLE app.later PARTITION OF app.items FOR VALUES FROM (0) TO (10)")
        owner.execute("INSERT INTO app.items VALUES (1)")
        owner.execute("SELECT ops_audit_watch('app.items', noun => 'item')")
        owner.execute("INSERT INTO app.later VALUES (2)")
        owner.execute("SELECT ops_audit_unwatch('app.items')")
        owner.execute("INSERT INTO app.later VALUES (3)")
        owner.execute("INSERT INTO app.items VALUES (4)")
        assert [key for _, key, _ in self.told(sql)] == ["1", "2"]


def test_a_role_of_an_applications_own_puts_its_tables_under_audit_and_nothing_else(database: Database, sql: Sql):
    """Neither role has any other right here, and the platform's owner none to the application's table."""
    url = database.stack.postgres.url(database.name)
    with psycopg.connect(url, autocommit=True, options=f"-c search_path={SCHEMA}") as server:
        for role in ("shop_owner", "shop_app"):
            server.execute(f"DROP ROLE IF EXISTS {role}")
            server.execute(f"CREATE ROLE {role}")
        try:
            server.execute("SELECT ops_grant('shop_owner', 'watch')")
            server.execute("CREATE SCHEMA shop AUTHORIZATION shop_owner")
            server.execute("SET ROLE shop_owner")
            server.execute("CREATE TABLE shop.invoices (id int PRIMARY KEY, iban text)")
            server.execute("GRANT USAGE ON SCHEMA shop TO shop_app")
            server.execute("GRANT INSERT, UPDATE ON shop.invoices TO shop_app")
            server.execute(f"SELECT {SCHEMA}.ops_audit_watch('shop.invoices', redact => '{{iban}}', noun => 'item')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server.execute(f"SELECT {SCHEMA}.ops_audit_unwatch('users')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server.execute(f"SELECT {SCHEMA}.ops_audit_watch('users')")
            server.execute("SET ROLE shop_app")
            server.execute("INSERT INTO shop.invoices VALUES (1, 'DE00')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server.execute(f"SELECT * FROM {SCHEMA}.audit_logs")
            server.execute("SET ROLE shop_owner")
            server.execute("TRUNCATE shop.invoices")
        finally:
            server.execute("RESET ROLE")
            server.execute("DROP OWNED BY shop_owner, shop_app CASCADE")
            server.execute("DROP ROLE shop_owner, shop_app")
    found = sql("SELECT action, resource_id, changes, details FROM audit_logs WHERE resource_type = 'item' ORDER BY id")
    assert found == [
        ("item.created", "1", {"id": [None, 1], "iban": [None, "[secret]"]}, None),
        ("item.truncated", None, None, {"rows": None}),
    ]
