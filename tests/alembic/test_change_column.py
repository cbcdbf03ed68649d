"""Another dimension or model for a column with vectors: filled beside, swapped, kept, brought back."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError

import sqla_vector.alembic
from sqla_vector import DimensionMismatch, InvalidOption, InvalidVector, MigrationError, NonFiniteVector, Vector
from sqla_vector.alembic import ChangeVectorColumnOp
from sqla_vector.alembic.definition import IndexDefinition
from tests.support.backends import AnyEngine, Backend
from tests.support.change import (
    CHANGE,
    NEW,
    OLD,
    RESTORE,
    Recorder,
    articles,
    assert_search,
    assert_vectors,
    columns_of,
    fill,
    leftovers_of,
    rows,
    vectors_of,
    widen,
    widened,
)
from tests.support.migrations import Project
from tests.support.statements import sync_engine

DRIVERS = pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg", "pysqlite3", "aiosqlite")
BOTH = pytest.mark.backends("psycopg", "pysqlite3")
DROP_KEPT = 'op.drop_kept_vector_column("article", "embedding")'


def prepared(
    tmp_path: Path, backend: Backend, count: int = 10, *, backfill: Any = widen, **options: Any
) -> tuple[Project, dict[int, Any]]:
    """Return a project whose table has rows, and whose next revision changes its vectors."""
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = backfill
    metadata = articles(OLD, **options)
    given = rows(count, with_null=options.get("nullable", True))
    backend.create_all(project.engine, metadata)
    fill(backend, project.engine, metadata, given)
    project.write(CHANGE, RESTORE)
    return project, {row["id"]: row["embedding"] for row in given}


def changed(vectors: dict[int, Any]) -> dict[int, Any]:
    return {id_: None if v is None else widened({"embedding": v}) for id_, v in vectors.items()}


def assert_untouched(project: Project, vectors: dict[int, Any]) -> None:
    """The column of old serves as if nothing had been tried."""
    backend, engine = project.backend, project.engine
    assert_vectors(vectors_of(backend, engine, OLD), vectors)
    assert_search(backend, engine, articles(OLD), vectors)
    assert "embedding__old" not in columns_of(backend, engine)


def run(project: Project, function: Any) -> Any:
    return project.backend.run(project.engine, function)


@DRIVERS
def test_the_column_gets_its_new_vectors_and_its_index(tmp_path, backend):
    recorder = Recorder()
    project, vectors = prepared(tmp_path, backend, backfill=recorder)
    project.upgrade()
    assert recorder.ids == [id_ for id_, vector in vectors.items() if vector is not None]
    assert max(map(len, recorder.batches)) == 2
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(vectors))
    assert_search(backend, project.engine, articles(NEW), changed(vectors))
    assert leftovers_of(backend, project.engine) == []


@DRIVERS
def test_the_old_vectors_are_kept_and_autogenerate_ignores_them(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, OLD, "embedding__old"), vectors)
    assert project.drift(articles(NEW)) == []


@DRIVERS
def test_the_downgrade_brings_the_old_vectors_back_bit_for_bit(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    before = columns_of(backend, project.engine).keys()
    project.upgrade()
    project.downgrade()
    assert_vectors(vectors_of(backend, project.engine, OLD), vectors)
    assert_search(backend, project.engine, articles(OLD), vectors)
    assert project.drift(articles(OLD)) == []
    assert columns_of(backend, project.engine).keys() == before


@BOTH
def test_up_down_and_up_again_computes_the_vectors_again(tmp_path, backend):
    recorder = Recorder()
    project, vectors = prepared(tmp_path, backend, backfill=recorder)
    project.upgrade()
    project.downgrade()
    project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(vectors))
    assert len(recorder.ids) == 2 * sum(vector is not None for vector in vectors.values())


@DRIVERS
def test_what_was_filled_before_a_failure_is_not_computed_again(tmp_path, backend):
    recorder = Recorder(fail_at=3)
    project, vectors = prepared(tmp_path, backend, 12, backfill=recorder)
    with pytest.raises(MigrationError, match="embedder is down"):
        project.upgrade()
    assert_untouched(project, vectors)
    before, failing = recorder.batches[:2], recorder.batches[2]
    recorder.fail_at = None
    recorder.batches.clear()
    project.upgrade()
    assert recorder.batches[0] == failing
    assert not set(recorder.ids) & {id_ for batch in before for id_ in batch}
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(vectors))


def none_for_one(given: list[Any]) -> list[Any]:
    return [None, *widen(given)[1:]]


def with_nan(given: list[Any]) -> Any:
    found = widen(given)
    found[0, 0] = np.nan
    return found


@BOTH
@pytest.mark.parametrize(
    ("backfill", "error", "message"),
    [
        (lambda given: widen(given)[1:], MigrationError, "returned 1 vectors"),
        (lambda given: None, MigrationError, "returned NoneType"),
        (lambda given: 7, MigrationError, "returned int"),
        (lambda given: widen(given)[:, 1:], DimensionMismatch, "4"),
        (with_nan, NonFiniteVector, "article.embedding"),
        (none_for_one, InvalidVector, "None"),
        (lambda given: ["[1,2,3,4]"] * len(given), InvalidVector, "article.embedding"),
        (lambda given: {}["missing"], MigrationError, "KeyError"),
    ],
    ids=["count", "nothing", "number", "dimension", "nan", "none", "text", "raises"],
)
def test_a_wrong_answer_of_backfill_leaves_the_column_as_it_was(tmp_path, backend, backfill, error, message):
    project, vectors = prepared(tmp_path, backend, backfill=backfill)
    with pytest.raises(error, match=message):
        project.upgrade()
    assert_untouched(project, vectors)
    project.attributes["backfill"] = widen
    project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(vectors))


@BOTH
def test_vectors_without_a_backfill_are_refused_before_anything_is_done(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, backfill=None)
    before = columns_of(backend, project.engine).keys()
    with pytest.raises(MigrationError, match=r"give op\.change_vector_column"):
        project.upgrade()
    assert_untouched(project, vectors)
    assert columns_of(backend, project.engine).keys() == before


@pytest.mark.parametrize("backfill", ["now", 3, [1.0]])
@pytest.mark.backends("pysqlite3")
def test_a_backfill_that_is_no_function_is_refused(tmp_path, backend, backfill):
    project, vectors = prepared(tmp_path, backend, backfill=backfill)
    with pytest.raises(InvalidOption, match="backfill"):
        project.upgrade()
    assert_untouched(project, vectors)


@DRIVERS
def test_later_starts_the_column_out_empty_and_keeps_the_old_vectors(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, backfill="later")
    project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW), dict.fromkeys(vectors))
    assert_vectors(vectors_of(backend, project.engine, OLD, "embedding__old"), vectors)
    assert project.drift(articles(NEW)) == []
    project.downgrade()
    assert_untouched(project, vectors)


@BOTH
def test_later_is_refused_where_null_is_not_allowed(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, backfill="later", nullable=False)
    with pytest.raises(MigrationError, match="takes no NULL"):
        project.upgrade()
    assert_untouched(project, vectors)


@DRIVERS
def test_a_table_without_vectors_is_changed_in_place(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = None
    backend.create_all(project.engine, articles(OLD))
    fill(backend, project.engine, articles(OLD), [{"id": 1, "title": "no vector", "embedding": None}])
    project.write(CHANGE, RESTORE)
    project.upgrade()
    assert "embedding__old" not in columns_of(backend, project.engine)
    assert project.drift(articles(NEW)) == []
    project.downgrade()
    assert project.drift(articles(OLD)) == []
    assert_vectors(vectors_of(backend, project.engine, OLD), {1: None})


@DRIVERS
def test_a_required_column_stays_required_and_rows_can_be_added(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, nullable=False)
    project.upgrade()
    columns = columns_of(backend, project.engine)
    assert (columns["embedding"]["nullable"], columns["embedding__old"]["nullable"]) == (False, True)
    fill(backend, project.engine, articles(NEW, nullable=False), rows(11, NEW, with_null=False)[-1:])
    assert project.drift(articles(NEW, nullable=False)) == []
    run(project, lambda session: session.execute(text("DELETE FROM article WHERE id = 11")) and None)
    project.downgrade()
    assert project.drift(articles(OLD, nullable=False)) == []
    assert_untouched(project, vectors)


@BOTH
def test_rows_written_since_have_no_old_vector_which_is_logged(tmp_path, backend, caplog):
    project, vectors = prepared(tmp_path, backend)
    project.upgrade()
    fill(backend, project.engine, articles(NEW), rows(11, NEW)[-1:])
    with caplog.at_level(logging.WARNING, "alembic.sqla_vector"):
        project.downgrade()
    assert "1 rows of article have no old vector" in caplog.text
    assert_vectors(vectors_of(backend, project.engine, OLD), {**vectors, 11: None})


@BOTH
def test_rows_written_since_stop_the_downgrade_of_a_required_column(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, nullable=False)
    project.upgrade()
    fill(backend, project.engine, articles(NEW), rows(11, NEW)[-1:])
    now = vectors_of(backend, project.engine, NEW)
    with pytest.raises(MigrationError, match="1 rows of article were written after"):
        project.downgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW), now)
    assert_vectors(vectors_of(backend, project.engine, OLD, "embedding__old"), {**vectors, 11: None})
    assert project.drift(articles(NEW, nullable=False)) == []


@DRIVERS
def test_without_the_kept_column_the_downgrade_is_refused_and_changes_nothing(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    project.write(DROP_KEPT)
    project.upgrade()
    assert "embedding__old" not in columns_of(backend, project.engine)
    assert project.drift(articles(NEW)) == []
    project.downgrade()
    with pytest.raises(MigrationError, match="no column embedding__old"):
        project.downgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(vectors))
    assert_search(backend, project.engine, articles(NEW), changed(vectors))
    assert project.drift(articles(NEW)) == []


@BOTH
def test_a_second_change_while_the_old_vectors_are_kept_is_refused(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    project.upgrade()
    project.write(CHANGE.replace("Vector(4)", "Vector(5)").replace("Vector(3)", "Vector(4)"))
    with pytest.raises(MigrationError, match="drop it first"):
        project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, OLD, "embedding__old"), vectors)


SAME_TYPE = CHANGE.replace("Vector(4)", "Vector(3)")


def negated(given: list[Any]) -> Any:
    return [-np.asarray(row["embedding"]) for row in given]


@DRIVERS
def test_another_model_of_the_same_dimension_is_a_change_too(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = negated
    backend.create_all(project.engine, articles(OLD))
    given = rows(6)
    fill(backend, project.engine, articles(OLD), given)
    vectors = {row["id"]: row["embedding"] for row in given}
    project.write(SAME_TYPE, RESTORE.replace("Vector(4)", "Vector(3)"))
    project.upgrade()
    other = {id_: None if v is None else -v for id_, v in vectors.items()}
    assert_vectors(vectors_of(backend, project.engine, OLD), other)
    assert_search(backend, project.engine, articles(OLD), other)
    assert project.drift(articles(OLD)) == []
    project.downgrade()
    assert_untouched(project, vectors)


@BOTH
def test_a_third_model_while_the_first_is_kept_is_refused(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = negated
    backend.create_all(project.engine, articles(OLD))
    fill(backend, project.engine, articles(OLD), rows(6))
    project.write(SAME_TYPE)
    project.upgrade()
    after_one = vectors_of(backend, project.engine, OLD)
    project.write(SAME_TYPE)
    with pytest.raises(MigrationError, match="drop it first"):
        project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, OLD), after_one)


@BOTH
def test_text_keys_are_filled_in_order(tmp_path, backend):
    keys = ["b", "a:1", "ä", "a' OR 1=1 --", "%s", "Z"]
    seen = filled_by_key(tmp_path, backend, [Column("id", String(20), primary_key=True)], [{"id": key} for key in keys])
    assert sorted(seen) == sorted(keys)


@BOTH
def test_composite_keys_are_filled_in_order(tmp_path, backend):
    columns = [Column("id", Integer, primary_key=True), Column("part", String(5), primary_key=True)]
    given = [{"id": id_, "part": part} for id_ in (1, 2, 3) for part in ("x", "y", "z")]
    seen = filled_by_key(tmp_path, backend, columns, given)
    assert sorted(seen) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_others_can_write_meanwhile_to_a_table_without_rowid(tmp_path, backend):
    metadata = articles(OLD, index=False)
    table = metadata.tables["article"]
    table.dialect_options["sqlite"]["with_rowid"] = False
    others = other_engine(backend)
    written: list[int] = []

    def backfill(given: list[Any]) -> Any:
        if not written:
            written.append(given[0]["id"])
            with others.begin() as connection:
                changed = update(table).where(table.c.id == given[0]["id"])
                assert connection.execute(changed.values(embedding=[7, 7, 7])).rowcount == 1
        return widen(given)

    project = Project(tmp_path, backend)
    project.attributes["backfill"] = backfill
    backend.create_all(project.engine, metadata)
    fill(backend, project.engine, metadata, rows(6))
    project.write(CHANGE.replace('[{"index_name": "ix_article_embedding", "metric": "l2"}]', "[]"))
    project.upgrade()
    others.dispose()
    old = vectors_of(backend, project.engine, OLD, "embedding__old")
    assert list(old[written[0]]) == [7, 7, 7]
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(old))


def filled_by_key(tmp_path: Path, backend: Backend, keys: list[Any], given: list[dict[str, Any]]) -> list[Any]:
    """Change a table with this key, and return the ids that were filled."""
    recorder = Recorder()
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = recorder
    metadata = articles(OLD, keys=keys, index=False)
    backend.create_all(project.engine, metadata)
    full = [{**row, "embedding": [n, 1, 2]} for n, row in enumerate(given)]
    fill(backend, project.engine, metadata, full)
    project.write(CHANGE.replace('[{"index_name": "ix_article_embedding", "metric": "l2"}]', "[]"))
    project.upgrade()
    table = Table("article", MetaData(), *(Column(key.name) for key in keys), Column("embedding", Vector(NEW)))
    found = run(project, lambda session: session.execute(select(table)).all())
    expected = {tuple(row[key.name] for key in keys): widened(row) for row in full}
    assert_vectors({tuple(row[:-1]): row[-1] for row in found}, expected)
    return recorder.ids


@BOTH
def test_a_table_without_a_key_is_refused(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = widen
    metadata = articles(OLD, keys=[Column("id", Integer)], index=False)
    backend.create_all(project.engine, metadata)
    fill(backend, project.engine, metadata, rows(4))
    project.write(CHANGE.replace('[{"index_name": "ix_article_embedding", "metric": "l2"}]', "[]"))
    before = columns_of(backend, project.engine).keys()
    with pytest.raises(MigrationError, match="no primary key"):
        project.upgrade()
    assert columns_of(backend, project.engine).keys() == before
    assert leftovers_of(backend, project.engine) == []


@BOTH
def test_indexes_of_other_columns_stay(tmp_path, backend):
    project, _ = prepared(tmp_path, backend)

    def indexes() -> set[str]:
        return backend.run_connection(
            project.engine, lambda c: {str(i["name"]) for i in inspect(c).get_indexes("article")}
        )

    before = indexes()
    assert "ix_article_title" in before
    project.upgrade()
    assert indexes() == before
    project.downgrade()
    assert indexes() == before


@BOTH
def test_a_missing_table_or_column_is_refused(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    (project.versions / "0001_by_hand.py").unlink()
    project._count = 0
    project.write(CHANGE.replace('"embedding"', '"nothing"'))
    with pytest.raises(MigrationError, match=r"no column article\.nothing"):
        project.upgrade()
    (project.versions / "0001_by_hand.py").unlink()
    project._count = 0
    project.write(CHANGE.replace('"article"', '"nothing"'))
    with pytest.raises(MigrationError, match="no table nothing"):
        project.upgrade()
    assert_untouched(project, vectors)


@BOTH
def test_a_column_of_another_type_than_said_is_refused(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    (project.versions / "0001_by_hand.py").unlink()
    project._count = 0
    project.write(CHANGE.replace("Vector(3)", "Vector(7)"))
    with pytest.raises(MigrationError, match="neither"):
        project.upgrade()
    assert_untouched(project, vectors)


@BOTH
def test_a_table_in_another_schema_is_changed_there(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = widen
    where = "other"
    if backend.family == "sqlite":
        other = tmp_path / "other.db"
        project.engine = backend.make_engine()

        @event.listens_for(project.engine, "connect")
        def attach(dbapi_connection: Any, record: Any) -> None:
            dbapi_connection.execute(f"ATTACH '{other}' AS other")

    else:
        backend.run(project.engine, lambda session: session.execute(text("CREATE SCHEMA other")) and None)
    metadata = articles(OLD, schema=where)
    backend.create_all(project.engine, metadata)
    given = rows(6)
    fill(backend, project.engine, metadata, given)
    vectors = {row["id"]: row["embedding"] for row in given}
    schema = f'    schema="{where}",\n)\n'
    project.write(CHANGE.removesuffix(")\n") + schema, RESTORE.removesuffix(")\n") + schema)
    project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW, schema=where), changed(vectors))
    assert_search(backend, project.engine, articles(NEW, schema=where), changed(vectors))
    project.downgrade()
    assert_vectors(vectors_of(backend, project.engine, OLD, schema=where), vectors)
    assert_search(backend, project.engine, metadata, vectors)
    project.write('op.drop_kept_vector_column("article", "embedding", schema="other")')
    project.upgrade()
    assert "embedding__old" not in columns_of(backend, project.engine, where)
    assert_vectors(vectors_of(backend, project.engine, NEW, schema=where), changed(vectors))


@BOTH
def test_a_transaction_around_the_migration_is_refused(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    options = sqla_vector.alembic.options()

    def migrate(connection: Any) -> None:
        operations = Operations(MigrationContext.configure(connection, opts=options))
        operations.change_vector_column(  # type: ignore[attr-defined]  # registered by the package
            "article", "embedding", type_=Vector(NEW), existing_type=Vector(OLD), backfill=widen
        )

    with pytest.raises(MigrationError, match="commits by itself"):
        backend.run_connection(project.engine, migrate)
    assert_untouched(project, vectors)


def other_engine(backend: Backend) -> AnyEngine:
    """Return an engine for somebody else, who is synchronous on every driver."""
    driver = "postgresql+psycopg" if backend.family == "postgresql" else "sqlite+pysqlite"
    return create_engine(backend.url.set(drivername=driver), plugins=["sqla_vector"])


@DRIVERS
def test_every_row_that_others_write_meanwhile_has_the_vector_of_its_latest_state(tmp_path, backend):
    table = articles(OLD).tables["article"]
    others = other_engine(backend)
    written: list[int] = []

    def backfill(given: list[Any]) -> Any:
        # After the rows were read and before their vectors are written.
        if len(written) < 6:
            number = len(written)
            written.append(number)
            with others.begin() as connection:
                first, last = given[0]["id"], given[-1]["id"]
                connection.execute(update(table).where(table.c.id == first).values(embedding=[number, 0, 9]))
                connection.execute(insert(table), [{"id": 100 + number, "title": "new", "embedding": [1, number, 1]}])
                # One that has been filled already, one that loses its vector, one that is gone.
                connection.execute(update(table).where(table.c.id == 1).values(embedding=[number, 1, 1]))
                if number == 3:
                    connection.execute(update(table).where(table.c.id == last).values(embedding=None))
                if number == 4:
                    connection.execute(delete(table).where(table.c.id == last))
        return widen(given)

    project, vectors = prepared(tmp_path, backend, 20, backfill=backfill)
    project.upgrade()
    others.dispose()
    old = vectors_of(backend, project.engine, OLD, "embedding__old")
    assert len(written) == 6
    assert old.keys() - vectors.keys() == {100 + number for number in range(6)}
    assert len(vectors.keys() - old.keys()) == 1
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(old))
    assert_search(backend, project.engine, articles(NEW), changed(old))


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_writer_that_never_stops_loses_nothing(tmp_path, backend):
    project, _ = prepared(tmp_path, backend, 60)
    table = articles(OLD).tables["article"]
    others = other_engine(backend)
    stop, started, failures = threading.Event(), threading.Event(), []

    def write() -> None:
        rng = np.random.default_rng(5)
        # Reflected at every turn, as the columns change under it: only the old column is written.
        change = update(table).where(table.c.id == bindparam("key")).values(embedding=bindparam("vector"))
        try:
            while not stop.is_set():
                with others.begin() as connection:
                    columns = {c["name"] for c in inspect(connection).get_columns("article")}
                    if "embedding__old" in columns:
                        return
                    vector = rng.normal(size=OLD).astype(np.float32)
                    connection.execute(change, {"key": int(rng.integers(1, 61)), "vector": vector})
                started.set()
        except Exception as error:
            # The swap may come between the question and the UPDATE, which then has the wrong dimension.
            failures.append(error)
        finally:
            started.set()

    writer = threading.Thread(target=write)
    writer.start()
    started.wait()
    try:
        project.upgrade()
    finally:
        stop.set()
        writer.join()
        others.dispose()
    assert all("expected 4 dimensions" in str(error) for error in failures), failures
    old = vectors_of(backend, project.engine, OLD, "embedding__old")
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(old))
    assert leftovers_of(backend, project.engine) == []


@BOTH
@pytest.mark.parametrize("written", [False, True], ids=["as it is", "through a file"])
def test_the_operations_of_autogenerate_reverse_to_each_other(tmp_path, backend, written):
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, articles(OLD))
    if written:
        path = project.revision(articles(NEW))
        up, _, down = path.read_text().partition("def downgrade()")
        assert "op.change_vector_column(" in up
        assert "op.restore_vector_column(" in down
        project.upgrade()
        assert project.drift(articles(NEW)) == []
        project.downgrade()
        assert project.drift(articles(OLD)) == []
        return
    indexes = [IndexDefinition("ix_article_embedding", "article", "embedding", {"metric": "l2"})]
    change = ChangeVectorColumnOp(
        "article",
        "embedding",
        type_=Vector(NEW),
        existing_type=Vector(OLD),
        indexes=indexes,
        backfill=widen,
    )
    there_and_back = change.reverse().reverse()
    assert isinstance(there_and_back, ChangeVectorColumnOp)
    assert there_and_back.to_diff_tuple() == change.to_diff_tuple()
    assert there_and_back.indexes == change.indexes
    assert there_and_back.existing_indexes == change.existing_indexes == ()


class Lengths:
    """An embedder: the lengths of a text's words, and how many there are."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: list[str]) -> Any:
        """Return the vectors of texts."""
        self.texts += texts
        return np.array([[len(t), len(t.split()), t.count("\n"), 1] for t in texts], np.float32)


def with_text(tmp_path: Path, backend: Backend, texts: list[tuple[str | None, str | None]], source: str) -> Project:
    project = Project(tmp_path, backend)
    project.attributes["backfill"] = Lengths()
    keys = [Column("id", Integer, primary_key=True), Column("body", String(40))]
    metadata = articles(OLD, keys=keys)
    backend.create_all(project.engine, metadata)
    given = [
        {"id": n, "title": title, "body": body, "embedding": [n, 2, 3]} for n, (title, body) in enumerate(texts, 1)
    ]
    fill(backend, project.engine, metadata, given)
    project.write(CHANGE.replace("    batch_size=2,\n", f"    batch_size=2,\n    source={source},\n"))
    return project


@DRIVERS
def test_an_embedder_is_given_the_text_of_its_source_columns(tmp_path, backend):
    project = with_text(
        tmp_path, backend, [("one", "two three"), (None, "body only"), ("title", "  ")], '("title", "body")'
    )
    project.upgrade()
    embedder = project.attributes["backfill"]
    assert embedder.texts == ["one\n\ntwo three", "body only", "title"]
    expected = {1: [14, 3, 2, 1], 2: [9, 2, 0, 1], 3: [5, 1, 0, 1]}
    assert_vectors(vectors_of(backend, project.engine, NEW), expected)


@BOTH
def test_a_row_with_a_vector_and_without_text_is_refused(tmp_path, backend):
    project = with_text(tmp_path, backend, [("one", None), (None, " ")], '("title", "body")')
    with pytest.raises(MigrationError, match="the row id=2 has a vector and no text in title, body"):
        project.upgrade()
    assert project.attributes["backfill"].texts == []
    assert_vectors(vectors_of(backend, project.engine, OLD), {1: [1, 2, 3], 2: [2, 2, 3]})


@BOTH
@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ('"nothing"', MigrationError, "no column article.nothing"),
        ('"id"', InvalidOption, "holds int, not text"),
        ("()", InvalidOption, "give source="),
        ("('a\"b',)", InvalidOption, "is no name"),
    ],
)
def test_a_source_that_is_no_text_is_refused(tmp_path, backend, source, error, message):
    project = with_text(tmp_path, backend, [("one", "two")], source)
    with pytest.raises(error, match=message):
        project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, OLD), {1: [1, 2, 3]})


@pytest.mark.backends("pysqlite3")
def test_a_source_without_an_embedder_is_refused(tmp_path, backend):
    project = with_text(tmp_path, backend, [("one", "two")], '"title"')
    project.attributes["backfill"] = widen
    with pytest.raises(InvalidOption, match="source= is for an embedder"):
        project.upgrade()


@BOTH
def test_a_row_that_does_not_keep_its_new_vector_is_an_error_and_no_endless_loop(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    if backend.family == "sqlite":
        veto = [
            "CREATE TRIGGER veto BEFORE UPDATE ON article WHEN OLD.id = 3 BEGIN SELECT RAISE(IGNORE); END",
        ]
    else:
        veto = [
            "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
            "CREATE TRIGGER veto BEFORE UPDATE ON article FOR EACH ROW WHEN (OLD.id = 3) EXECUTE FUNCTION veto()",
        ]
    for statement in veto:
        run(project, lambda session, sql=statement: session.execute(text(sql)) and None)
    with pytest.raises(MigrationError, match=r"row \(3,\) was written and is not there"):
        project.upgrade()
    assert_untouched(project, vectors)


@BOTH
def test_two_tables_with_a_column_of_one_name_do_not_get_in_each_others_way(tmp_path, backend):
    others = other_engine(backend)
    other = articles(OLD, name="note")
    table = other.tables["note"]
    project, vectors = prepared(tmp_path, backend, backfill=Recorder(fail_at=2))
    backend.create_all(project.engine, other)
    fill(backend, project.engine, other, rows(6))
    with pytest.raises(MigrationError, match="embedder is down"):
        project.upgrade()

    written: list[int] = []

    def backfill(given: list[Any]) -> Any:
        # The first batch was filled already when this is written.
        if len(given) and given[0]["id"] != 1 and not written:
            written.append(1)
            with others.begin() as connection:
                connection.execute(update(table).where(table.c.id == 1).values(embedding=[7, 7, 7]))
        return widen(given)

    path = project.versions / "0001_by_hand.py"
    first = path.read_text()
    path.write_text(first.replace('"article"', '"note"').replace("ix_article", "ix_note"))
    project.attributes["backfill"] = backfill
    project.upgrade()
    others.dispose()
    both = select(*(Column(name, Vector(dim)) for name, dim in (("embedding__old", OLD), ("embedding", NEW))))
    found = run(project, lambda session: session.execute(both.select_from(text("note"))).all())
    assert written == [1]
    assert [7.0, 7.0, 7.0] in [None if old is None else old.tolist() for old, _ in found]
    for old, new in found:
        assert (old is None) == (new is None)
        assert old is None or new.tolist() == widened({"embedding": old}).tolist()

    path.write_text(first)
    project.attributes["backfill"] = widen
    backend.run(project.engine, lambda session: session.execute(text("DELETE FROM alembic_version")) and None)
    project.upgrade()
    assert_vectors(vectors_of(backend, project.engine, NEW), changed(vectors))
    assert leftovers_of(backend, project.engine) == []


@pytest.mark.backends("psycopg_noplugin", "asyncpg_noplugin", "psycopg2")
def test_an_engine_without_the_plugin_is_served_on_postgresql(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend)
    # Every command has an engine of its own, as env.py makes it.
    for step in (project.upgrade, project.downgrade, project.upgrade):
        project.engine = backend.make_engine(plugins=[])
        step()
    engine = backend.make_engine()
    assert_vectors(vectors_of(backend, engine, NEW), changed(vectors))
    assert_search(backend, engine, articles(NEW), changed(vectors))


@pytest.mark.backends("pysqlite3", "aiosqlite")
def test_nobody_writes_to_sqlite_between_the_last_look_and_the_swap(tmp_path, backend):
    project, _ = prepared(tmp_path, backend)
    others = create_engine(
        backend.url.set(drivername="sqlite+pysqlite"), plugins=["sqla_vector"], connect_args={"timeout": 0}
    )
    tried: list[str] = []

    @event.listens_for(sync_engine(project.engine), "after_cursor_execute")
    def write(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        is_last_look = statement.startswith("BEGIN IMMEDIATE") and "embedding__new" in columns_of_other()
        if is_last_look:
            try:
                with others.begin() as other:
                    other.execute(text("UPDATE article SET title = 'late' WHERE id = 1"))
            except DBAPIError as error:
                tried.append(str(error.orig))

    def columns_of_other() -> set[str]:
        with others.connect() as other:
            return {column["name"] for column in inspect(other).get_columns("article")}

    project.upgrade()
    others.dispose()
    assert tried == ["database is locked"]


@BOTH
def test_a_change_that_was_begun_can_be_given_up_for_another(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, backfill=Recorder(fail_at=2))
    with pytest.raises(MigrationError, match="embedder is down"):
        project.upgrade()
    path = project.versions / "0001_by_hand.py"
    path.write_text(path.read_text().replace("Vector(4)", "Vector(5)"))
    project.attributes["backfill"] = lambda given: [[*row["embedding"], 1, 2] for row in given]
    with pytest.raises(MigrationError, match=r"drop it with op\.drop_kept_vector_column\('article', 'embedding'\)"):
        project.upgrade()
    assert_untouched(project, vectors)
    body = path.read_text()
    path.write_text(body.replace("    op.change_vector_column(", f"    {DROP_KEPT}\n    op.change_vector_column("))
    project.upgrade()
    longer = {id_: None if v is None else [*v, 1, 2] for id_, v in vectors.items()}
    assert_vectors(vectors_of(backend, project.engine, 5), longer)
    assert leftovers_of(backend, project.engine) == []


@BOTH
def test_a_change_that_was_given_up_leaves_a_table_that_can_be_written(tmp_path, backend):
    project, vectors = prepared(tmp_path, backend, backfill=Recorder(fail_at=2))
    with pytest.raises(MigrationError, match="embedder is down"):
        project.upgrade()
    (project.versions / "0001_by_hand.py").unlink()
    project._count = 0
    project.write(DROP_KEPT)
    project.upgrade()
    assert leftovers_of(backend, project.engine) == []
    assert project.drift(articles(OLD)) == []
    run(project, lambda s: s.execute(text("UPDATE article SET embedding = NULL WHERE id = 1")) and None)
    assert_vectors(vectors_of(backend, project.engine, OLD), {**vectors, 1: None})
