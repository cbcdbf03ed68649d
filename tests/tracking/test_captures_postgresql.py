"""Triggers on PostgreSQL: rights, search paths, COPY and TRUNCATE, and what only PostgreSQL has."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON, Connection, Numeric, Text, insert, text
from sqlalchemy.dialects.postgresql import ARRAY

from sqla_vector.types import support_of
from tests.support.backends import AnyEngine, Backend
from tests.tracking.captured import Captured, entries, library, notes
from tests.tracking.test_captures import SETUP, WAYS, marked

pytestmark = pytest.mark.backends("psycopg", "asyncpg")


@pytest.fixture
def captured(backend: Backend, engine: AnyEngine) -> Captured:
    made = Captured(backend, engine, library())
    made.sql(*SETUP)
    return made


@pytest.fixture
def role(captured: Captured) -> Any:
    """A role that may write articles and nothing else."""
    name = captured.run(lambda c: c.scalar(text("SELECT 'writer_' || current_database()")))
    captured.sql(
        f'CREATE ROLE "{name}"',
        f'GRANT USAGE ON SCHEMA public TO "{name}"',
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON article TO "{name}"',
    )
    yield name
    captured.sql(f'DROP OWNED BY "{name}"', f'DROP ROLE "{name}"')


def test_who_writes_needs_no_rights_on_the_outbox(captured: Captured, role: str):
    found = captured.sql(
        f'SET ROLE "{role}"',
        "UPDATE article SET headline = 'n' WHERE id = 1",
        "INSERT INTO article (id, headline) VALUES (7, 'n')",
        "RESET ROLE",
    )
    assert found == marked(1, 7)

    def read(connection: Connection) -> None:
        connection.exec_driver_sql(f'SET LOCAL ROLE "{role}"')
        connection.exec_driver_sql("SELECT * FROM vector_outbox")

    with pytest.raises(Exception, match="permission denied"):
        captured.run(read)


def test_nobody_can_put_the_function_on_a_table_of_his_own(captured: Captured, role: str):
    (name,) = {c.name for c in captured.base.captures if c.table == "article"}

    def misuse(connection: Connection) -> None:
        connection.exec_driver_sql(f'SET LOCAL ROLE "{role}"')
        connection.exec_driver_sql("CREATE TEMPORARY TABLE mine (id int)")
        connection.exec_driver_sql(
            f"CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {name}('0', 'new')"
        )

    with pytest.raises(Exception, match="permission denied for function"):
        captured.run(misuse)


def test_tables_and_functions_of_the_same_name_elsewhere_are_not_taken(captured: Captured):
    def attack(connection: Connection) -> Any:
        for statement in (
            "CREATE SCHEMA evil",
            "CREATE TABLE evil.vector_outbox (LIKE public.vector_outbox INCLUDING ALL)",
            "CREATE TABLE evil.article (LIKE public.article)",
            "CREATE TEMPORARY TABLE vector_outbox (LIKE public.vector_outbox INCLUDING ALL)",
            "CREATE TEMPORARY TABLE article (LIKE public.article)",
            "CREATE FUNCTION evil.to_json(text) RETURNS json LANGUAGE plpgsql AS 'BEGIN RAISE ''taken''; END'",
            "CREATE FUNCTION evil.rpad(text, int, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''taken''; END'",
            "SET LOCAL search_path = evil, pg_catalog, public",
            "UPDATE public.article SET headline = 'n' WHERE id = 1",
            "UPDATE public.author SET name = 'n' WHERE id = 2",
        ):
            connection.exec_driver_sql(statement)
        found = entries(connection, captured.base.outbox)
        connection.exec_driver_sql("SET LOCAL search_path = public, pg_temp")
        return found, set(entries(connection, captured.base.outbox))

    assert captured.run(attack) == ([], marked(1, 3))


def test_copy_is_captured(captured: Captured):
    def copy(session: Any) -> Any:
        connection = session.connection()
        raw = connection.connection.driver_connection
        if captured.backend.name == "asyncpg":
            from sqlalchemy.util import await_only

            await_only(
                raw.copy_records_to_table(
                    "article", records=[(70, "n", None), (71, "m", "f@1:x")], columns=["id", "headline", "slug"]
                )
            )
        else:
            with raw.cursor().copy("COPY article (id, headline, slug) FROM STDIN") as stream:
                stream.write("70\tn\t\\N\n71\tm\ts\n")
        return set(entries(connection, captured.base.outbox))

    assert captured.backend.run(captured.engine, copy) == marked(70, 71)


def test_truncate_marks_what_loses_its_text(captured: Captured):
    assert captured.sql("TRUNCATE tag") == marked(1, 2)
    assert captured.sql("TRUNCATE labelled") == marked(1, 2)
    assert captured.sql("TRUNCATE author, article, tag, labelled") == marked(1, 2, 3)


def test_a_merge_is_captured(captured: Captured):
    found = captured.sql(
        "MERGE INTO article USING (VALUES (1, 'n'), (2, 'y'), (50, 'n')) AS new (id, headline) ON article.id = new.id "
        "WHEN MATCHED THEN UPDATE SET headline = new.headline "
        "WHEN NOT MATCHED THEN INSERT (id, headline) VALUES (new.id, new.headline)"
    )
    assert found == marked(1, 50)


def test_a_key_that_is_in_use_when_it_is_deferred_may_come_later(backend: Backend, engine: AnyEngine):
    base = library()
    for constraint in base.metadata.tables["article"].foreign_key_constraints:
        constraint.deferrable, constraint.initially = True, "DEFERRED"
    # Declared anew: the definition knows what is enforced at once.
    from sqla_vector.tracking import outbox_triggers

    outbox_triggers(base, base.outbox)
    made = Captured(backend, engine, base)
    found = made.written(
        "INSERT INTO article (id, author_id, embedding_fingerprint, words_fingerprint) VALUES (1, 1, 'x', 'x')",
        "INSERT INTO author (id, name) VALUES (1, 'n')",
    )
    assert found == [*marked(1)]


def test_what_triggers_before_the_update_set_is_seen(captured: Captured):
    captured.sql(
        "CREATE FUNCTION titled() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.headline := upper(NEW.slug); RETURN NEW; END'",
        "CREATE TRIGGER titled BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION titled()",
    )
    assert captured.sql("UPDATE article SET slug = 'other' WHERE id = 1") == marked(1)


@pytest.mark.parametrize(
    ("type_", "before", "after"),
    [
        (JSON(), '{"a":1}', '{"a":2}'),
        (ARRAY(Text()), "{a,b}", "{a}"),
        # Equal as numbers, another text.
        (Numeric(), "1.0", "1.00"),
    ],
    ids=repr,
)
def test_a_column_of_any_type_is_compared_as_its_text(backend: Backend, engine: AnyEngine, type_, before, after):
    base = notes()
    base.metadata.tables["note"].c.body.type = type_
    made = Captured(backend, engine, base)
    made.sql(f"INSERT INTO note (id, body) VALUES ('a', '{before}')")
    assert made.sql(f"UPDATE note SET body = '{before}'") == set()
    assert made.sql(f"UPDATE note SET body = '{after}'") == {("note", '["a"]', "upsert")}


def test_schemas_and_names_may_be_odd(backend: Backend, engine: AnyEngine):
    names = {"article": "My Articles", "author": "user", "tag": "täg $x$ $do$", "publisher": "p" * 63}
    base = library(schema="Odd - schema", names=names)
    backend.run_connection(engine, lambda c: c.execute(text('CREATE SCHEMA "Odd - schema"')))
    made = Captured(backend, engine, base)
    tables = {
        table: f'"Odd - schema"."{names.get(table, table)}"' for table in ("article", "author", "tag", "publisher")
    }

    def translated(statement: str) -> str:
        for table in ("labelled", "label"):
            statement = statement.replace(f" {table} ", f' "Odd - schema".{table} ')
        for table, name in tables.items():
            statement = statement.replace(f" {table} ", f" {name} ")
        return statement

    made.sql(*map(translated, SETUP))
    for statement, keys in WAYS:
        if statement.startswith(("UPDATE", "INSERT INTO tag")) and "CONFLICT" not in statement:

            def run(connection: Connection, statement: str = translated(statement)) -> Any:
                with connection.begin_nested() as savepoint:
                    connection.exec_driver_sql(statement)
                    found = set(entries(connection, base.outbox))
                    savepoint.rollback()
                return found

            assert made.run(run) == {("Odd - schema.My Articles", f"[{key}]", "upsert") for key in keys}, statement


def test_each_tenants_schema_has_triggers_of_its_own(backend: Backend, engine: AnyEngine):
    base = library()

    def run(connection: Connection) -> Any:
        found = []
        for tenant in ("one", "two"):
            connection.exec_driver_sql(f"CREATE SCHEMA {tenant}")
            connection.exec_driver_sql(f"SET LOCAL search_path = {tenant}, public")
            base.metadata.create_all(connection)
            for statement in SETUP:
                connection.exec_driver_sql(statement)
            entries(connection, base.outbox)
        connection.exec_driver_sql("SET LOCAL search_path = public")
        connection.exec_driver_sql("UPDATE one.author SET name = 'n' WHERE id = 2")
        for tenant in ("one", "two"):
            connection.exec_driver_sql(f"SET LOCAL search_path = {tenant}, public")
            found.append(set(entries(connection, base.outbox)))
        return found

    assert backend.run_connection(engine, run) == [marked(3), set()]


def test_a_schema_that_is_translated_has_triggers(backend: Backend, engine: AnyEngine):
    base = library()

    def run(connection: Connection) -> Any:
        found = []
        for tenant in ("one", "two"):
            connection.exec_driver_sql(f'CREATE SCHEMA "{tenant}"')
            connection.execution_options(schema_translate_map={None: tenant})
            base.metadata.create_all(connection)
            base.metadata.create_all(connection)
            connection.exec_driver_sql(f"SET LOCAL search_path = {tenant}")
            for statement in SETUP:
                connection.exec_driver_sql(statement)
            entries(connection, base.outbox)
            connection.exec_driver_sql("UPDATE author SET name = 'n' WHERE id = 2")
            found.append(set(entries(connection, base.outbox)))
        base.metadata.drop_all(connection)
        names = connection.execute(
            text("SELECT pronamespace::regnamespace::text FROM pg_proc WHERE proname ~ 'capture'")
        )
        return found, {name for (name,) in names}

    assert backend.run_connection(engine, run) == ([marked(3), marked(3)], {"one"})


def test_a_table_or_column_of_the_row_itself_may_be_renamed(captured: Captured):
    captured.sql("ALTER TABLE article RENAME headline TO title", "ALTER TABLE label RENAME TO etikett")
    assert captured.sql("UPDATE article SET title = 'n' WHERE id = 1") == marked(1)
    assert captured.sql("UPDATE etikett SET word = 'n' WHERE id = 1") == marked(1)


def test_partitions_have_the_triggers_of_their_table(backend: Backend, engine: AnyEngine):
    base = notes()
    base.metadata.tables["note"].dialect_options["postgresql"]["partition_by"] = "LIST (id)"
    made = Captured(backend, engine, base)
    made.sql("CREATE TABLE note_a PARTITION OF note FOR VALUES IN ('a')")
    made.sql("CREATE TABLE note_b PARTITION OF note DEFAULT")
    assert made.sql("INSERT INTO note (id, body) VALUES ('a', 'x')") == {("note", '["a"]', "upsert")}
    assert made.sql("UPDATE note SET id = 'c'") == {("note", '["c"]', "upsert")}
    backend.create_all(engine, base.metadata)
    (found,) = made.run(lambda c: support_of(c.dialect).captures().reflect(c, None))
    assert found.is_of(base.captures[0])


def test_a_disabled_trigger_is_drift(captured: Captured):
    captured.sql("ALTER TABLE tag DISABLE TRIGGER USER")
    found = captured.run(lambda c: support_of(c.dialect).captures().reflect(c, None))
    declared = {capture.table: capture for capture in captured.base.captures}
    assert {f.table_name for f in found if not f.is_of(declared[f.table_name])} == {"tag"}


def test_text_of_any_kind_passes_and_is_compared(captured: Captured):
    article = captured.tables["article"]
    text_ = "'\"\\%s :x $body$ \t\n 🙂" * 20_000
    assert captured.sql(insert(article).values(id=80, headline=text_)) == marked(80)
    assert captured.sql(article.update().where(article.c.id == 80).values(headline=text_)) == set()
    assert captured.sql(article.update().where(article.c.id == 80).values(headline=text_ + "!")) == marked(80)
