"""Changes of a table on SQLite keep its vector indexes: batches, which copy it, and renames."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError

from sqla_vector import IndexNotUsable, Vector, nearest, vector_index
from tests.support.backends import Backend
from tests.support.brute_force import assert_equal, make_vectors
from tests.support.brute_force import nearest as brute_force
from tests.support.migrations import Project

VEC0 = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
ONE = pytest.mark.backends("pysqlite3")
BOTH_KEYS = pytest.mark.parametrize("key", [Integer, String(10)], ids=["int", "text"])
DIM = 4


class Model:
    """A table with two vector indexes, a unique constraint and another index, under names that may change.

    Args:
        key: the type of the primary key.
        names: the new names of columns, by those that they had first.
        table: the table's name.
        more: further columns and constraints.
        without: the names of what is gone: columns, constraints, indexes.
    """

    def __init__(
        self, key: Any, names: dict[str, str] | None = None, table: str = "item", more: Any = (), without: Any = ()
    ) -> None:
        names = names or {}
        self._new = lambda old: names.get(old, old)
        new = self._new
        self.metadata = MetaData()
        elements = [
            Column(new("id"), key, primary_key=True),
            Column(new("slug"), String(10)),
            Column(new("language"), String(10)),
            Column(new("tenant"), String(10), nullable=False),
            Column(new("note"), String(10)),
            Column(new("embedding"), Vector(DIM)),
            UniqueConstraint(new("slug"), new("tenant"), name="uq_item"),
            Index("ix_item_note", new("note")),
            vector_index(
                "ix_item_l2",
                new("embedding"),
                metric="l2",
                include=() if "language" in without else (new("language"),),
                partition_by=new("tenant"),
            ),
            vector_index("ix_item_int8", new("embedding"), metric="cosine", precision="int8"),
        ]
        self.table = Table(
            table,
            self.metadata,
            *(e for e in elements if e.name not in without),
            *more,  # type: ignore[attr-defined]
        )

    def column(self, name: str) -> Column[Any]:
        """Return a column by the name that it had first."""
        return self.table.c[self._new(name)]

    def row(self, **values: Any) -> dict[str, Any]:
        """Return a row's values by the columns' present names."""
        return {self._new(name): value for name, value in values.items()}


def to_key(type_: Any, number: int) -> Any:
    return number if type_ is Integer else f"k{number}"


def rows(key: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": to_key(key, number),
            "slug": None if number % 7 == 0 else f"s{number}",
            "language": None if number % 5 == 0 else f"l{number % 3}",
            "tenant": f"t{number % 2}",
            "note": f"n{number}",
            "embedding": vector,
        }
        for number, vector in make_vectors(30, DIM).items()
    ]


def prepared(tmp_path: Path, backend: Backend, key: Any = Integer, **options: Any) -> tuple[Project, Model]:
    """Return a project, and a model whose table is there with its rows."""
    project = Project(tmp_path, backend, **options)
    model = Model(key)
    backend.create_all(project.engine, model.metadata)
    backend.run_connection(project.engine, lambda c: c.execute(insert(model.table), rows(key)) and None)
    return project, model


def content(connection: Connection, table: Table) -> dict[Any, Any]:
    """Return rows in a form that can be compared: vectors as bytes."""
    (key,) = table.primary_key.columns
    return {
        row[key.name]: {n: v.tobytes() if isinstance(v, np.ndarray) else v for n, v in row.items()}
        for row in connection.execute(select(table)).mappings()
    }


def assert_in_step(connection: Connection, model: Model) -> None:
    """Compare both vec0 tables with the table."""
    stored = list(connection.execute(select(model.table)).mappings())
    key, vector, language, tenant = (model.column(n).name for n in ("id", "embedding", "language", "tenant"))
    is_text = isinstance(model.column("id").type, String)

    def found(index: str, columns: str) -> dict[Any, Any]:
        numbers = {row[0]: tuple(row[1:]) for row in connection.exec_driver_sql(f"SELECT rowid{columns} FROM {index}")}
        if not is_text:
            return numbers
        keys = dict(connection.exec_driver_sql(f"SELECT number, key FROM {index}_keys").all())
        return {keys[number]: values for number, values in numbers.items()}

    assert found("ix_item_l2", ", vector, partition_1, include_1") == {
        row[key]: (row[vector].tobytes(), row[tenant], "\x01null" if row[language] is None else row[language])
        for row in stored
        if row[vector] is not None
    }
    assert found("ix_item_int8", "").keys() == {
        row[key] for row in stored if row[vector] is not None and row[vector].any()
    }


def assert_searches(connection: Connection, model: Model) -> None:
    """Compare what is found with brute force; the statements ask the indexes."""
    key, vector = model.column("id"), model.column("embedding")
    stored = {row[key.name]: row for row in connection.execute(select(model.table)).mappings()}
    vectors = {id_: row[vector.name] for id_, row in stored.items()}
    query = np.array([0.3, -0.2, 0.9, 0.1], np.float32)
    for metric, index in (("l2", "ix_item_l2"), ("cosine", "ix_item_int8")):
        stmt = nearest(select(key), vector, query, k=5, metric=metric)
        assert f"FROM {index} WHERE vector MATCH" in str(stmt.compile(connection))
        assert_equal(connection.execute(stmt), brute_force(vectors, query, 5, metric))
    tenant = model.column("tenant")
    stmt = nearest(select(key).where(tenant == "t1", model.column("language") == "l1"), vector, query, k=5, metric="l2")
    assert "include_1 =" in str(stmt.compile(connection))
    language = model.column("language").name
    expected = brute_force(
        vectors, query, 5, "l2", keep=lambda id_: stored[id_][tenant.name] == "t1" and stored[id_][language] == "l1"
    )
    assert_equal(connection.execute(stmt), expected)


def assert_follows(connection: Connection, model: Model) -> None:
    """Write in every way, and compare after each."""
    table, key = model.table, model.column("id")
    new = [to_key(Integer if isinstance(key.type, Integer) else String, 100 + number) for number in range(5)]
    first, second, third = connection.execute(select(key).order_by(key).limit(3)).scalars()
    vector = np.array([1, 2, 3, 4], np.float32)

    def row(id_: Any, slug: str, **more: Any) -> dict[str, Any]:
        return model.row(**{"id": id_, "slug": slug, "language": "de", "tenant": "t0", "embedding": vector, **more})

    def replace(values: dict[str, Any]) -> Any:
        return sqlite_insert(table).values(values).prefix_with("OR REPLACE")

    statements = [
        insert(table).values(row(new[0], "new0")),
        insert(table).values(row(new[1], "new1", embedding=None, language=None)),
        replace(row(new[0], "new0", embedding=-vector)),  # the same key
        replace(row(new[2], "new0")),  # another key, the same unique columns
        update(table).where(key == new[1]).values(model.row(embedding=vector)),
        update(table).where(key == first).values(model.row(embedding=None)),
        update(table).where(key == second).values(model.row(language="fr", tenant="t9")),
        update(table).where(key == second).values(model.row(id=new[3])),
        update(table).prefix_with("OR REPLACE").where(key == third).values(model.row(slug="new1", tenant="t0")),
        table.delete().where(key == new[2]),
    ]
    for statement in statements:
        before = content(connection, table)
        connection.execute(statement)
        assert content(connection, table) != before
        assert_in_step(connection, model)
    assert_searches(connection, model)


def assert_kept(project: Project, before: Model, after: Model, names: dict[str, str] | None = None) -> None:
    """Rows and ids are as they were, both indexes serve, nothing differs from the model, and writes are followed."""
    names = names or {}
    expected = {
        row["id"]: {
            names.get(n, n): v.tobytes() if isinstance(v, np.ndarray) else v
            for n, v in row.items()
            if names.get(n, n) in after.table.c
        }
        for row in rows(String if isinstance(before.column("id").type, String) else Integer)
    }

    def check(connection: Connection) -> None:
        found = content(connection, after.table)
        for row in found.values():
            for extra in set(row) - set(next(iter(expected.values()))):
                del row[extra]
        assert found == expected
        # The numbers by which vec0 knows rows are theirs still, too.
        assert_in_step(connection, after)
        assert_searches(connection, after)
        assert {i["name"] for i in inspect(connection).get_indexes(after.table.name)} >= {"ix_item_l2", "ix_item_int8"}
        assert leftovers(connection) == []
        assert_follows(connection, after)

    assert project.drift(after.metadata) == []
    project.backend.run_connection(project.engine, check)


def leftovers(connection: Connection) -> list[str]:
    """Return what Alembic and the indexes may have left behind."""
    found = connection.exec_driver_sql(
        "SELECT name FROM sqlite_master WHERE name LIKE '%alembic_tmp%' OR sql LIKE '%alembic_tmp%'"
    )
    return [row[0] for row in found]


BATCHES = {
    "nothing but a copy": ("pass", {}, 'recreate="always"'),
    "a new column": (
        'batch.add_column(sa.Column("more", sa.String(5)))',
        {"more": lambda: [Column("more", String(5))]},
        "",
    ),
    "a new column in a copy": (
        'batch.add_column(sa.Column("more", sa.String(5)), insert_after="id")',
        {"more": lambda: [Column("more", String(5))]},
        'recreate="always"',
    ),
    "another default": ('batch.alter_column("note", server_default="x")', {}, ""),
    "a dropped column": (
        'batch.drop_index("ix_item_note")\nbatch.drop_column("note")',
        {"without": ("note", "ix_item_note")},
        "",
    ),
    "a new unique constraint": (
        'batch.create_unique_constraint("uq_note", ["note"])',
        {"more": lambda: [UniqueConstraint("note", name="uq_note")]},
        "",
    ),
    "a dropped unique constraint": ('batch.drop_constraint("uq_item", type_="unique")', {"without": ("uq_item",)}, ""),
    "a new index": ('batch.create_index("ix_slug", ["slug"])', {"more": lambda: [Index("ix_slug", "slug")]}, ""),
    "another order of columns": ("pass", {}, 'recreate="always", partial_reordering=[("embedding", "tenant", "id")]'),
    "a naming convention": (
        'batch.alter_column("note", server_default="x")',
        {},
        'naming_convention={"uq": "uq_%(table_name)s_%(column_0_name)s"}',
    ),
    "a check": ('batch.create_check_constraint("ck", "length(note) < 9")', {}, ""),
}


@VEC0
@BOTH_KEYS
@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_keeps_rows_ids_and_vector_indexes(tmp_path, backend, key, case):
    body, changes, options = BATCHES[case]
    project, before = prepared(tmp_path, backend, key)
    body = body.replace("\n", "\n    ")
    project.write(f'with op.batch_alter_table("item"{options and ", " + options}) as batch:\n    {body}')
    project.upgrade()
    assert_kept(project, before, Model(key, more=changes.get("more", list)(), without=changes.get("without", ())))


RENAMES = {
    "the vector column": {"embedding": "vec"},
    "the vector column to a word that needs quotes": {"embedding": "the vector"},
    "the key": {"id": "number"},
    "an included column": {"language": "lang"},
    "an included column to a reserved word": {"language": "order"},
    "the partition column": {"tenant": "owner"},
    "a column of the unique constraint": {"slug": "zz_last"},
    "another column": {"note": "remark"},
    "all at once": {"embedding": "vec", "id": "number", "language": "lang", "tenant": "owner", "slug": "zz"},
}


@VEC0
@BOTH_KEYS
@pytest.mark.parametrize("way", ["batch", "plain", "sql"])
@pytest.mark.parametrize("case", RENAMES)
def test_an_index_serves_under_the_new_names_of_columns(tmp_path, backend, key, case, way):
    names = RENAMES[case]
    project, before = prepared(tmp_path, backend, key)
    project.write(renaming(names, way), renaming({new: old for old, new in names.items()}, way))
    project.upgrade()
    project.downgrade()
    assert project.drift(before.metadata) == []
    project.upgrade()
    assert_kept(project, before, Model(key, names), names)


def renaming(names: dict[str, str], way: str) -> str:
    match way:
        case "batch":
            lines = "\n".join(f"    batch.alter_column({old!r}, new_column_name={new!r})" for old, new in names.items())
            return f'with op.batch_alter_table("item") as batch:\n{lines}'
        case "plain":
            return "\n".join(f'op.alter_column("item", {old!r}, new_column_name={new!r})' for old, new in names.items())
    return "\n".join(f'op.execute(\'ALTER TABLE item RENAME COLUMN "{old}" TO "{new}"\')' for old, new in names.items())


@VEC0
@BOTH_KEYS
@pytest.mark.parametrize("name", ["article", "Order", "the table"])
def test_an_index_serves_under_the_new_name_of_its_table(tmp_path, backend, key, name):
    project, before = prepared(tmp_path, backend, key)
    project.write(f'op.rename_table("item", {name!r})', f'op.rename_table({name!r}, "item")')
    project.upgrade()
    project.downgrade()
    assert project.drift(before.metadata) == []
    project.upgrade()
    assert_kept(project, before, Model(key, table=name))


@VEC0
@BOTH_KEYS
def test_everything_may_be_renamed_and_then_copied(tmp_path, backend, key):
    names = {"embedding": "vec", "language": "lang", "id": "number"}
    project, before = prepared(tmp_path, backend, key)
    project.write(renaming(names, "plain") + '\nop.rename_table("item", "article")')
    project.write('with op.batch_alter_table("article", recreate="always") as batch:\n    pass')
    project.upgrade()
    assert_kept(project, before, Model(key, names, "article"), names)


ALTERED = """\
with op.batch_alter_table({0!r}, {1}) as batch:
    batch.alter_column("embedding", new_column_name="vec")
    batch.alter_column("language", new_column_name="lang")
"""


@VEC0
@BOTH_KEYS
def test_a_batch_may_copy_from_a_table_that_is_given(tmp_path, backend, key):
    """The indexes of the given table are declared, not reflected."""
    names = {"embedding": "vec", "language": "lang"}
    project, before = prepared(tmp_path, backend, key)
    project.attributes["table"] = before.table
    project.write(ALTERED.format("item", 'copy_from=op.get_context().config.attributes["table"]'))
    project.upgrade()
    assert_kept(project, before, Model(key, names), names)


@VEC0
@BOTH_KEYS
def test_a_batch_that_autogenerate_writes_keeps_the_indexes(tmp_path, backend, key):
    project, before = prepared(tmp_path, backend, key)
    after = Model(
        key, more=[Column("more", String(5)), UniqueConstraint("note", name="uq_note")], without=("ix_item_note",)
    )
    written = project.revision(after.metadata).read_text()
    assert "op.batch_alter_table('item'" in written
    assert "create_vector_index" not in written.partition("def downgrade")[0].partition("batch_op")[0]
    project.upgrade()
    project.downgrade("base")
    assert project.drift(before.metadata) == []
    project.upgrade()
    assert_kept(project, before, after)


@VEC0
@BOTH_KEYS
def test_a_unique_index_is_kept_beside_the_vector_indexes(tmp_path, backend, key):
    """Rows that INSERT OR REPLACE removes because of it leave the vector indexes too."""
    project, before = prepared(tmp_path, backend, key)
    project.write(
        'with op.batch_alter_table("item", recreate="always") as batch:\n'
        '    batch.create_index("ux_item_note", ["note"], unique=True)'
    )
    project.write('with op.batch_alter_table("item", recreate="always") as batch:\n    pass')
    project.upgrade()
    after = Model(key, more=[Index("ux_item_note", "note", unique=True)])

    def replace(connection: Connection) -> None:
        savepoint = connection.begin_nested()
        values = {"id": to_key(key, 77), "note": "n1", "tenant": "t", "embedding": [1, 2, 3, 4]}
        connection.execute(sqlite_insert(after.table).values(values).prefix_with("OR REPLACE"))
        assert connection.scalar(select(after.table.c.id).where(after.table.c.note == "n1")) == to_key(key, 77)
        assert_in_step(connection, after)
        savepoint.rollback()

    assert project.drift(after.metadata) == []
    backend.run_connection(project.engine, replace)
    assert_kept(project, before, after)


def names_of(project: Project) -> set[str]:
    """Return the names of everything in the database, without Alembic's own table."""
    found = project.backend.run_connection(
        project.engine, lambda c: c.exec_driver_sql("SELECT name FROM sqlite_master").scalars().all()
    )
    return {name for name in found if "alembic_version" not in name and not name.startswith("sqlite_")}


DROPPED = {
    "drop the column": 'with op.batch_alter_table("item") as batch:\n    batch.drop_column("embedding")',
    "drop the indexes and the column": (
        'with op.batch_alter_table("item") as batch:\n    batch.drop_index("ix_item_l2")\n'
        '    batch.drop_index("ix_item_int8")\n    batch.drop_column("embedding")'
    ),
    "drop the indexes in a batch without a copy": (
        'with op.batch_alter_table("item") as batch:\n    batch.drop_index("ix_item_l2")\n'
        '    batch.drop_index("ix_item_int8")'
    ),
    "drop the indexes by Alembic's own operation": (
        'op.drop_index("ix_item_l2", "item")\nop.drop_index("ix_item_int8", table_name="item")'
    ),
    "drop the indexes by name alone": 'op.drop_index("ix_item_l2")\nop.drop_index("ix_item_int8")',
}


@VEC0
@BOTH_KEYS
@pytest.mark.parametrize("case", DROPPED)
def test_vector_indexes_go_without_a_trace(tmp_path, backend, key, case):
    """With their column, as on PostgreSQL, and by name, as any other index."""
    project, before = prepared(tmp_path, backend, key)
    project.write(DROPPED[case])
    project.upgrade()
    assert names_of(project) == {"item", "ix_item_note"}
    kept = [column for column in before.table.c if column.name != "embedding"]
    found = backend.run_connection(project.engine, lambda c: c.execute(select(*kept)).mappings().all())
    expected = [{name: value for name, value in row.items() if name != "embedding"} for row in rows(key)]
    assert [dict(row) for row in found] == expected


@VEC0
@BOTH_KEYS
@pytest.mark.parametrize("body", ['op.drop_table("item")', 'op.rename_table("item", "other")\nop.drop_table("other")'])
def test_a_table_that_is_dropped_by_name_takes_its_vector_indexes_along(tmp_path, backend, key, body):
    project, _ = prepared(tmp_path, backend, key)
    project.write('op.create_table("bystander", sa.Column("id", sa.Integer, primary_key=True))')
    project.write(body)
    project.upgrade()
    assert names_of(project) == {"bystander"}


@VEC0
def test_the_vector_indexes_of_other_tables_stay_when_one_is_dropped(tmp_path, backend):
    project, kept = prepared(tmp_path, backend)
    other = Table(
        "other",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(DIM)),
        vector_index("ix_item", "embedding"),  # the beginning of the others' names
    )
    backend.create_all(project.engine, other.metadata)
    project.write('op.drop_table("other")')
    project.upgrade()
    assert not {name for name in names_of(project) if re.match("ix_item(_insert|_update|_delete|_info)?$", name)}
    assert_kept(project, kept, kept)


@VEC0
@BOTH_KEYS
def test_an_included_column_is_not_dropped_from_under_its_index(tmp_path, backend, key):
    project, before = prepared(tmp_path, backend, key)
    project.write('with op.batch_alter_table("item") as batch:\n    batch.drop_column("language")')
    with pytest.raises(IndexNotUsable, match="ix_item_l2: item has no column language any more"):
        project.upgrade()
    assert_kept(project, before, before)


@VEC0
def test_a_batch_that_fails_changes_nothing(tmp_path, backend):
    project, before = prepared(tmp_path, backend)
    project.write('with op.batch_alter_table("item") as batch:\n    batch.alter_column("slug", nullable=False)')
    with pytest.raises(IntegrityError, match="NOT NULL"):
        project.upgrade()
    assert_kept(project, before, before)


@ONE
def test_triggers_of_others_are_lost_in_a_copy_as_alembic_does_it(tmp_path, backend):
    """docs/migrations.md says so; a plain ALTER TABLE keeps them."""
    project, before = prepared(tmp_path, backend)
    mine = "CREATE TRIGGER mine AFTER INSERT ON item BEGIN SELECT 1; END"
    backend.run_connection(project.engine, lambda c: c.exec_driver_sql(mine) and None)
    project.write('op.alter_column("item", "note", new_column_name="remark")')
    project.write('with op.batch_alter_table("item", recreate="always") as batch:\n    pass')
    project.upgrade("0001")
    assert "mine" in names_of(project)
    project.upgrade()
    assert "mine" not in names_of(project)
    assert_kept(project, before, Model(Integer, {"note": "remark"}), {"note": "remark"})
