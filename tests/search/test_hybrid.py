"""hybrid() against an independent reference, and what may be done with its statement."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select

from sqla_vector import Vector, match_text, text_index, vector_index
from sqla_vector.fusion import rrf, weighted
from sqla_vector.metrics import METRICS
from sqla_vector.search import hybrid, text_part, vector_part
from tests.support.brute_force import engine_that_indexes
from tests.support.brute_force import nearest as brute_force
from tests.support.fused import Part, assert_fused, fuse

DIM = 4
CASES = int(os.environ.get("SQLA_VECTOR_TEST_HYBRID_CASES", "250"))
SYNCHRONOUS = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")


def make_rows(count: int, seed: int = 5) -> dict[int, dict[str, Any]]:
    """Return rows with few different vectors, so that ties are common, some of them missing."""
    rng = np.random.default_rng(seed)
    vectors = [*rng.normal(size=(15, DIM)).astype(np.float32), np.zeros(DIM, np.float32), *[None] * 4]

    def vector() -> Any:
        return vectors[rng.integers(len(vectors))]

    words = ["cat", "dog", "train", "bridge", "tea"]
    return {
        key: {
            "id": key,
            "lang": ("en", "de", "fr")[key % 3],
            "words": " ".join(rng.choice(words, size=rng.integers(0, 5))),
            "notes": None if key % 5 == 0 else " ".join(rng.choice(words, size=rng.integers(0, 9))),
            "title": vector(),
            "body": vector(),
            "bits": vector(),
        }
        for key in range(1, count + 1)
    }


ROWS = make_rows(60)
TEXTS = ("words", "notes")
METRIC_OF = {"title": "cosine", "body": "l2", "bits": "inner_product"}


def make_table(*, indexed: bool = True) -> Table:
    texts = [text_index(f"ix_doc_{name}", name) for name in TEXTS]
    indexes = [vector_index(f"ix_doc_{name}", name, metric=METRIC_OF[name]) for name in ("title", "body")]
    return Table(
        "doc",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("lang", String(8)),
        *(Column(name, String(80)) for name in TEXTS),
        *(Column(name, Vector(DIM)) for name in METRIC_OF),
        *texts,
        *(indexes if indexed else ()),
    )


def fill(connection: Connection, table: Table) -> None:
    table.create(connection)
    connection.execute(insert(table), list(ROWS.values()))


@dataclass
class Case:
    """A search at random."""

    vectors: list[tuple[str, list[float], float, float | None]]
    texts: list[tuple[str, str, float]]
    fusion: Any
    reference: dict[str, Any]
    k: int
    candidates: int
    offset: int | None
    lang: str | None
    later: int | None


VECTORS = st.integers(0, 1000).map(
    lambda seed: np.random.default_rng(seed).normal(size=DIM).astype(np.float32).tolist()
)
WEIGHTS = st.sampled_from([1.0, 1.0, 0.5, 3])
QUERIES = st.sampled_from(["cat", "cat or tea", "dog -cat", '"cat dog"', "nothing", "train bridge", "-tea", ""])
BOUNDS = st.sampled_from([None, None, 0.7, 1.5])
FUSIONS = st.one_of(
    st.sampled_from([1, 60]).map(lambda k: (rrf(k), {"rrf": k})),
    st.tuples(st.sampled_from([0, 0.3, 0.5, 1]), st.sampled_from(["minmax", "max", "none"])).map(
        lambda one: (weighted(*one), {"alpha": one[0], "normalize": one[1]})
    ),
)


@st.composite
def cases(draw: Any) -> Case:
    texts = draw(st.lists(st.sampled_from(TEXTS), max_size=2, unique=True))
    names = draw(st.lists(st.sampled_from(list(METRIC_OF)), min_size=0 if texts else 1, max_size=3, unique=True))
    fusion, reference = draw(FUSIONS)
    assume(names if reference.get("alpha") == 1 else texts if reference.get("alpha") == 0 else True)
    k = draw(st.integers(1, 12))
    return Case(
        [(name, draw(VECTORS), draw(WEIGHTS), draw(BOUNDS)) for name in names],
        [(name, draw(QUERIES), draw(WEIGHTS)) for name in texts],
        fusion,
        reference,
        k,
        draw(st.integers(k, 40)),
        draw(st.sampled_from([None, None, 3, 30])),
        draw(st.sampled_from([None, "en"])),
        draw(st.sampled_from([None, 20])),
    )


def expected_part(case: Case, name: str, query: list[float], weight: float, bound: float | None) -> Part:
    def keep(key: int) -> bool:
        return (case.lang is None or ROWS[key]["lang"] == case.lang) and (case.later is None or key > case.later)

    metric = METRIC_OF[name]
    found = brute_force(
        {key: row[name] for key, row in ROWS.items()},
        query,
        case.candidates,
        metric,
        keep=keep,
        max_distance=float("inf") if bound is None else bound,
    )
    return Part("vector", weight, [(key, METRICS[metric].similarity(d, DIM)) for key, d in found])


def statement(table: Table, case: Case) -> Any:
    stmt = select(table.c.id)
    if case.lang is not None:
        stmt = stmt.where(table.c.lang == case.lang)
    parts: list[Any] = [
        text_part(table, query, weight=weight, index=f"ix_doc_{name}", name=name) for name, query, weight in case.texts
    ]
    parts += [
        vector_part(table.c[name], query, weight=weight, max_distance=bound, metric=METRIC_OF[name])
        for name, query, weight, bound in case.vectors
    ]
    stmt = hybrid(stmt, parts=parts, k=case.k, fusion=case.fusion, candidates=case.candidates)
    if case.later is not None:
        stmt = stmt.where(table.c.id > case.later)
    return stmt if case.offset is None else stmt.offset(case.offset)


def expected_text(connection: Connection, table: Table, case: Case, name: str, query: str, weight: float) -> Part:
    """Return what the database finds by text alone: its ranks are its own."""
    stmt = select(table.c.id).where(table.c.id > (case.later or 0))
    if case.lang is not None:
        stmt = stmt.where(table.c.lang == case.lang)
    found = connection.execute(match_text(stmt, table, query, k=case.candidates, index=f"ix_doc_{name}"))
    return Part("text", weight, [(key, score) for key, score in found])


@SYNCHRONOUS
def test_hybrid_is_the_reference(backend):
    table = make_table()

    def check_all(connection: Connection) -> None:
        fill(connection, table)

        @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
        @given(cases())
        def check(case: Case) -> None:
            lists = [expected_text(connection, table, case, *one) for one in case.texts]
            lists += [expected_part(case, *one) for one in case.vectors]
            expected = fuse(lists, **case.reference)
            found = connection.execute(statement(table, case)).all()
            assert_fused(found, expected, case.offset or 0, case.k)

        check()

    backend.run_connection(engine_that_indexes(backend), check_all)
