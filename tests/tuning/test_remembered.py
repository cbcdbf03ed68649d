"""What tune() found: where it is kept, who learns of it, and what a search makes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqla_vector import InvalidOption, Vector, explain_nearest, nearest, nearest_each, nearest_to
from sqla_vector.dialects import settings_of
from sqla_vector.dialects.tuned import Tuned, TunedIndex
from sqla_vector.schema import vector_indexes
from sqla_vector.tuning import aforget, aload_tuned, forget, load_tuned, measure_recall, tune
from sqla_vector.types import support_of
from tests.support.backends import AnyEngine, Backend
from tests.support.migrations import Project
from tests.tuning.measured import DIM, filled, model, vectors

EACH = pytest.mark.backends("psycopg", "psycopg2", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")
ELEMENTS = (
    '[sa.Column("id", sa.Integer, primary_key=True), sa.Column("part", sa.Integer), '
    'sa.Column("e", sqla_vector.Vector(32))]'
)
BOTH = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
POSTGRESQL = pytest.mark.backends("psycopg", "asyncpg")
SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib", "aiosqlite")

ITEM = model(precision="int8", method="ivfflat", lists=4)
"""Of two settings on PostgreSQL's side, half precision and lists."""
QUERY = vectors(1, seed=9)[0]
ENTRY = Tuned(10, 0.95, 0.97, probes=3, oversample=7)


def prepared(backend: Backend, engine: AnyEngine, *entries: Tuned, item: Any = ITEM) -> None:
    """Create the table and its index, with entries beside it, as tune() writes them."""
    filled(backend, engine, item, vectors(300))
    if entries:
        backend.run_connection(engine, lambda c: write(c, item, *entries))


def write(connection: Any, item: Any, *entries: Tuned, built: str | None = None) -> None:
    support = support_of(connection.dialect).tuning()
    ((index, key),) = vector_indexes(item.__table__)
    support.remember(connection, index, TunedIndex(built or support.built(index, key), 300, None, entries))
    support.load(connection)


def known(engine: AnyEngine) -> dict[Any, TunedIndex]:
    return settings_of((engine.sync_engine if isinstance(engine, AsyncEngine) else engine).dialect).tuned


def search(**options: Any) -> Any:
    return nearest(select(ITEM.id), ITEM.e, QUERY, **options)


def rendered(backend: Backend, engine: AnyEngine, stmt: Any) -> str:
    """Return the SQL that a statement is sent as."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    def run(session: Any) -> None:
        session.connection()
        event.listen(listened, "before_cursor_execute", note)
        session.execute(stmt).all()
        event.remove(listened, "before_cursor_execute", note)

    listened = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    backend.run(engine, run)
    (statement,) = sent  # one round trip, whatever the recall
    return statement


@EACH
def test_a_search_for_a_recall_is_the_search_with_the_settings_found_for_it(backend: Backend, engine: AnyEngine):
    prepared(backend, engine, ENTRY)
    assert rendered(backend, engine, search(recall=0.95)) == rendered(backend, engine, search(**ENTRY.settings))
    assert rendered(backend, engine, search(recall=0.9)) == rendered(backend, engine, search(**ENTRY.settings))
    assert rendered(backend, engine, search(recall=0.95)) != rendered(backend, engine, search())
    # What is given stands over what was found.
    one, other = search(recall=0.95, oversample=2), search(probes=3, oversample=2)
    assert rendered(backend, engine, one) == rendered(backend, engine, other)


@BOTH
def test_every_form_of_search_takes_a_recall(backend: Backend, engine: AnyEngine):
    prepared(backend, engine, ENTRY)
    told, found = {"recall": 0.95}, ENTRY.settings
    each = [nearest_each(select(ITEM.id), ITEM.e, [QUERY, QUERY], **options) for options in (told, found)]
    like = [nearest_to(ITEM.e, 3, **options) for options in (told, found)]
    for one, other in (each, like):
        assert rendered(backend, engine, one) == rendered(backend, engine, other)


@BOTH
def test_a_recall_for_which_nothing_was_found_takes_the_defaults_and_says_so(
    backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture
):
    prepared(backend, engine, ENTRY)
    with caplog.at_level(logging.WARNING, "sqla_vector"):
        assert rendered(backend, engine, search(recall=0.99)) == rendered(backend, engine, search())
        rendered(backend, engine, search(recall=0.99))
    (said,) = caplog.messages  # as it is compiled, not as it runs
    assert "ix_item_e has no settings for recall 0.99" in said


@EACH
def test_an_explanation_tells_the_settings_of_a_recall(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(1_500))
    stmt = nearest(select(item.id), item.e, QUERY, recall=0.9)
    before = backend.run(engine, lambda s: explain_nearest(s, stmt)).reason
    assert "with default settings: none were found for recall 0.9" in before
    backend.run_connection(engine, lambda c: write(c, item, Tuned(10, 0.92, 0.93, oversample=11)))
    after = backend.run(engine, lambda s: explain_nearest(s, stmt)).reason
    assert after.endswith(", tuned for recall 0.92: oversample=11")


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_an_exact_index_holds_every_recall(backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture):
    item = model()
    filled(backend, engine, item, vectors(50))
    stmt = nearest(select(item.id), item.e, QUERY, recall=0.999)
    assert "finds everything" in backend.run(engine, lambda s: explain_nearest(s, stmt)).reason
    backend.run(engine, lambda s: s.execute(stmt).all())
    assert caplog.messages == []


@EACH
def test_another_engine_learns_it_as_it_connects(backend: Backend, engine: AnyEngine):
    prepared(backend, engine, ENTRY)
    other = backend.make_engine()
    assert rendered(backend, other, search(recall=0.95)) == rendered(backend, engine, search(**ENTRY.settings))


@EACH
def test_an_engine_with_open_connections_learns_it_when_it_is_told_to(backend: Backend, engine: AnyEngine):
    prepared(backend, engine)
    other = backend.make_engine()
    usual = rendered(backend, other, search(recall=0.95))
    backend.run_connection(engine, lambda c: write(c, ITEM, ENTRY))
    if isinstance(other, AsyncEngine):

        async def load() -> None:
            async with AsyncSession(other) as session:
                await aload_tuned(session)

        backend.wait(load())
    else:
        backend.run(other, load_tuned)
    assert rendered(backend, other, search(recall=0.95)) != usual


@pytest.mark.backends("psycopg_noplugin", "asyncpg_noplugin")
def test_without_the_plugin_it_is_known_after_tuning_and_after_loading(backend: Backend, engine: AnyEngine):
    prepared(backend, engine)
    usual = rendered(backend, engine, search(recall=0.95))
    backend.run_connection(engine, lambda c: write(c, ITEM, ENTRY))
    assert rendered(backend, engine, search(recall=0.95)) != usual
    other = backend.make_engine()
    assert rendered(backend, other, search(recall=0.95)) == usual
    backend.run(other, load_tuned)
    assert rendered(backend, other, search(recall=0.95)) != usual


@EACH
def test_what_is_forgotten_serves_no_more(backend: Backend, engine: AnyEngine):
    prepared(backend, engine, ENTRY)
    usual = rendered(backend, engine, search())
    if isinstance(engine, AsyncEngine):

        async def run() -> None:
            async with AsyncSession(engine) as session, session.begin():
                await aforget(session, ITEM.e)

        backend.wait(run())
    else:
        backend.run(engine, lambda s: forget(s, ITEM.e))
    assert rendered(backend, engine, search(recall=0.95)) == usual
    assert known(engine) == {} == known(backend.make_engine())


@EACH
def test_another_index_of_the_name_is_not_searched_with_it(backend: Backend, engine: AnyEngine):
    prepared(backend, engine)
    backend.run_connection(engine, lambda c: write(c, ITEM, ENTRY, built="hnsw full m=16 ef_construction=64"))
    assert known(engine)
    assert rendered(backend, engine, search(recall=0.95)) == rendered(backend, engine, search())


@EACH
@pytest.mark.parametrize("other", [{"lists": 300}, {"metric": "cosine"}])
def test_settings_do_not_outlive_a_rebuild_into_another_index(backend: Backend, engine: AnyEngine, other: Any):
    prepared(backend, engine, ENTRY)
    item = model(**{"precision": "int8", "method": "ivfflat", "lists": 4, **other})
    stmt = nearest(select(item.id), item.e, QUERY, recall=0.95)
    usual = nearest(select(item.id), item.e, QUERY)
    assert rendered(backend, engine, stmt) == rendered(backend, engine, usual)


@EACH
def test_tuning_again_replaces_what_was_found_for_that_k_and_recall(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(1_500))

    def run(session: Any) -> list[Any]:
        found = [tune(session, item.e, target_recall=r, k=k, sample=4) for r, k in ((0.5, 10), (0.6, 5), (0.5, 10))]
        return [(one.k, one.target_recall, one.settings) for one in found if one.is_remembered]

    one, other, again = backend.run(engine, run)
    assert one == again
    (found,) = set(known(engine).values())
    entries = {(entry.k, entry.recall, tuple(entry.settings.items())) for entry in found.entries}
    assert entries == {(k, recall, tuple(settings.items())) for k, recall, settings in (one, other)}
    assert found.rows == 1_500


@POSTGRESQL
def test_a_comment_of_people_stays_beside_it(backend: Backend, engine: AnyEngine):
    prepared(backend, engine)
    said = "it's ours: 100 % \\ [sqla_vector {no} :p"

    def comment(connection: Any) -> Any:
        return connection.scalar(text("SELECT obj_description('ix_item_e'::regclass, 'pg_class')"))

    def run(connection: Any) -> list[Any]:
        quoted = said.replace("'", "''")
        connection.exec_driver_sql(f"COMMENT ON INDEX ix_item_e IS '{quoted}'".replace("%", "%%"))
        found = [comment(connection)]
        write(connection, ITEM, ENTRY)
        write(connection, ITEM, ENTRY)
        found.append(comment(connection))
        ((index, _),) = vector_indexes(ITEM.__table__)
        support = support_of(connection.dialect).tuning()
        read = support.remembered(connection, index)
        support.remember(connection, index, None)
        return [*found, comment(connection), read]

    before, beside, after, read = backend.run_connection(engine, run)
    assert before == after
    assert beside.startswith(f"{before} [sqla_vector {{")
    assert beside.count('"tuned"') == 1
    assert read.entries == (ENTRY,)


@BOTH
@pytest.mark.parametrize("concurrently", [False, True])
def test_a_rebuild_by_a_migration_keeps_it(tmp_path: Path, backend: Backend, concurrently: bool):
    project = Project(tmp_path, backend)
    prepared(backend, project.engine, ENTRY)
    options = 'metric="l2", precision="int8", method="ivfflat", lists=4'
    project.write(f'op.rebuild_vector_index("ix_item_e", "item", "e", {options}, concurrently={concurrently})')
    project.upgrade()
    other = backend.make_engine()
    assert rendered(backend, other, search(recall=0.95)) == rendered(backend, other, search(**ENTRY.settings))


@pytest.mark.backends("psycopg")
def test_a_rebuild_written_as_a_script_keeps_it(tmp_path: Path, backend: Backend):
    project = Project(tmp_path, backend)
    prepared(backend, project.engine, ENTRY)
    project.write(f'op.rebuild_vector_index("ix_item_e", "item", "e", metric="l2", table_elements={ELEMENTS})')
    assert "COMMENT ON INDEX ix_item_e__new IS " in project.sql("upgrade", "head")


@BOTH
def test_a_migration_finds_no_difference(tmp_path: Path, backend: Backend):
    project = Project(tmp_path, backend)
    prepared(backend, project.engine, ENTRY)
    assert project.drift(ITEM.metadata) == []


@SQLITE
def test_its_table_is_hidden_and_goes_with_the_index(backend: Backend, engine: AnyEngine):
    prepared(backend, engine, ENTRY)
    (index,) = ITEM.__table__.indexes

    def tables(connection: Any) -> list[str]:
        return list(connection.scalars(text("SELECT name FROM sqlite_master WHERE name LIKE '%tuned'")))

    assert backend.run_connection(engine, tables) == ["ix_item_e_tuned"]
    assert backend.run_connection(engine, lambda c: inspect(c).get_table_names()) == ["item"]
    backend.run_connection(engine, index.drop)
    assert backend.run_connection(engine, tables) == []
    assert known(engine) == {}
    backend.drop_all(engine, ITEM.metadata)
    prepared(backend, engine, ENTRY)
    backend.drop_all(engine, ITEM.metadata)
    assert backend.run_connection(engine, tables) == []


@EACH
def test_a_rollback_takes_it_back(backend: Backend, engine: AnyEngine):
    prepared(backend, engine)

    class Undone(Exception): ...

    def run(connection: Any) -> None:
        write(connection, ITEM, ENTRY)
        assert known(engine)
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, run)
    assert known(engine) == {}
    backend.run_connection(engine, lambda c: write(c, ITEM, ENTRY))
    assert known(engine)
    kept = known(engine)
    with pytest.raises(Undone):
        backend.run_connection(engine, run)
    assert known(engine) == kept != {}


@pytest.mark.backends("psycopg")
def test_who_does_not_own_the_index_is_told_what_was_found(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(1_500))

    def run(session: Any) -> Any:
        for statement in ("CREATE ROLE reader", "GRANT SELECT ON item TO reader", "SET LOCAL ROLE reader"):
            session.execute(text(statement))
        found = tune(session, item.e, target_recall=0.5, sample=4)
        session.execute(text("RESET ROLE"))
        session.execute(text("DROP OWNED BY reader"))
        session.execute(text("DROP ROLE reader"))
        return found

    found = backend.run(engine, run)
    assert (found.is_reached, found.is_remembered) == (True, False)
    assert "it could not be remembered: must be owner of" in found.reason


@BOTH
def test_a_measurement_for_a_recall_for_which_nothing_was_found_says_so(
    backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture
):
    prepared(backend, engine, ENTRY)
    measured = backend.run(engine, lambda s: measure_recall(s, ITEM.e, sample=4, settings={"recall": 0.99}))
    assert measured.settings == {}
    assert "ix_item_e has no settings for recall 0.99, so the usual ones are measured" in caplog.text
    caplog.clear()
    measured = backend.run(engine, lambda s: measure_recall(s, ITEM.e, sample=4, settings={"recall": 0.9}))
    assert measured.settings == {"recall": 0.9, **ENTRY.settings}
    assert not caplog.text


@BOTH
def test_a_measurement_can_be_of_what_was_found(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(1_500))
    backend.run_connection(engine, lambda c: write(c, item, Tuned(10, 0.92, 0.93, oversample=11)))
    measured = {
        told: backend.run(engine, lambda s, told=told: measure_recall(s, item.e, sample=10, settings=dict([told])))
        for told in (("recall", 0.9), ("oversample", 11), ("recall", 0.95))
    }
    assert measured["recall", 0.9].recall == measured["oversample", 11].recall
    assert measured["recall", 0.9].settings == {"recall": 0.9, "oversample": 11}
    assert measured["recall", 0.95].settings == {}


@pytest.mark.parametrize("recall", [0, 1, -0.5, 1.5, "0.9", True, float("nan"), [0.9]])
def test_a_recall_that_is_no_share_is_refused(recall: Any):
    with pytest.raises(InvalidOption, match="recall must be a number over 0 and under 1"):
        search(recall=recall)


def test_a_recall_is_part_of_the_cache_key():
    keys = {search(recall=recall)._generate_cache_key()[0] for recall in (None, 0.9, 0.95)}
    assert len(keys) == 3
    assert search(recall=0.9)._generate_cache_key() == search(recall=0.9)._generate_cache_key()


def test_settings_for_the_nearest_k_serve_and_never_fetch_less():
    small, large = Tuned(10, 0.95, 0.96, ef_search=40, oversample=8), Tuned(100, 0.95, 0.97, ef_search=300, probes=5)
    found = TunedIndex("hnsw", 1000).with_entry(large).with_entry(small)
    assert found.chosen(10, 0.95) == small
    assert found.chosen(100, 0.95) == large
    assert found.chosen(20, 0.9) == Tuned(20, 0.95, 0.96, ef_search=80, oversample=8)
    assert found.chosen(5, 0.95) == Tuned(5, 0.95, 0.96, ef_search=40, oversample=16)
    assert found.chosen(1000, 0.95) == Tuned(1000, 0.95, 0.97, ef_search=1000, probes=5)
    assert found.chosen(10, 0.96) is None
    better = found.with_entry(Tuned(10, 0.99, 0.99, ef_search=90))
    assert better.chosen(10, 0.95) == small
    assert better.chosen(10, 0.97) == Tuned(10, 0.99, 0.99, ef_search=90)


def test_what_is_written_can_be_read():
    found = TunedIndex("ivfflat full lists=100", 12_345, 1.25, (ENTRY, Tuned(5, 0.5, 1.0, ef_search=10)))
    assert TunedIndex.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "written",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"version":2,"built":"x","rows":1,"imbalance":null,"tuned":[]}',
        TunedIndex("x", 1).to_json().replace("[]", '[{"k":0,"recall":0.9,"measured":1}]'),
        TunedIndex("x", 1).to_json().replace("[]", '[{"k":1,"recall":1.9,"measured":1}]'),
        TunedIndex("x", 1).to_json().replace("[]", '[{"k":1,"recall":0.9,"measured":1,"probes":"1; DROP"}]'),
        TunedIndex("x", 1).to_json().replace("[]", '[{"k":1,"recall":0.9,"measured":1,"ef_search":9999}]'),
        "[" * 100_000,
    ],
)
def test_what_somebody_else_wrote_there_is_left_alone(written: str):
    assert TunedIndex.from_json(written) is None


def test_the_type_of_the_rows_is_a_vector():
    assert isinstance(ITEM.__table__.c.e.type, Vector)
    assert ITEM.__table__.c.e.type.dim == DIM
