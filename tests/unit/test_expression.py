"""SQL as it is compiled, without a database."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Dialect,
    Integer,
    MetaData,
    String,
    Table,
    create_mock_engine,
    func,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import CompileError
from sqlalchemy.ext import serializer
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

import sqla_vector as sv
from sqla_vector import (
    BitVector,
    DimensionMismatch,
    HalfVector,
    InvalidOption,
    InvalidVector,
    SparseArray,
    SparseVector,
    UnsupportedMetric,
    Vector,
)
from sqla_vector.metrics import METRICS

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String),
    Column("e", Vector(3)),
    Column("h", HalfVector(3)),
    Column("s", SparseVector(3)),
    Column("b", BitVector(3)),
    Column("free", Vector()),
)


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(3))


V = [1.0, 2.0, 3.0]
BIT = [True, False, True]

POSTGRESQL: Dialect = postgresql.dialect()
SQLITE: Dialect = sqlite.dialect()


def sql(statement: Any, dialect: Dialect | None = None, **options: Any) -> str:
    compiled = statement.compile(dialect=dialect, compile_kwargs=options)
    return re.sub(r"\s+", " ", str(compiled))


OPERATORS = {"l2": "<->", "cosine": "<=>", "inner_product": "<#>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%%>"}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("column", ["e", "h", "s", "b"])
def test_each_distance_is_one_operator_and_one_function(metric: str, column: str) -> None:
    kind = item.c[column].type.kind
    if kind not in METRICS[metric].kinds:
        with pytest.raises(UnsupportedMetric, match=rf"item\.{column} is a {kind} column and has no {metric} metric"):
            sv.distance(item.c[column], V, metric)
        return
    d = sv.distance(item.c[column], BIT if kind == "bit" else V, metric)
    on_postgresql = sql(d, POSTGRESQL)
    assert f"(item.{column} {OPERATORS[metric]} " in on_postgresql
    assert ("::BIT(3))" if kind == "bit" else f"::{kind.upper()})") in on_postgresql
    function = f"vector_sparse_{metric}_distance" if kind == "sparsevec" else METRICS[metric].sqlite_function
    is_clamped = metric == "cosine" and kind != "sparsevec"  # the stand-in for sparse vectors clamps by itself
    call = f"max({function}(" if is_clamped else f"{function}("
    assert sql(d, SQLITE).startswith(f"CASE WHEN item.{column} IS NOT NULL THEN {call}")


FREE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "l2_distance": sv.l2_distance,
    "cosine_distance": sv.cosine_distance,
    "max_inner_product": sv.max_inner_product,
    "l1_distance": sv.l1_distance,
    "hamming_distance": sv.hamming_distance,
    "jaccard_distance": sv.jaccard_distance,
}


@pytest.mark.parametrize("name", FREE_FUNCTIONS)
def test_a_comparator_method_is_the_free_function(name: str) -> None:
    column, value = (item.c.b, BIT) if name in ("hamming_distance", "jaccard_distance") else (item.c.e, V)
    method = getattr(column, name)(value)
    assert method.compare(FREE_FUNCTIONS[name](column, value))
    (metric,) = (m for m in METRICS.values() if m.function == name)
    assert method.compare(sv.distance(column, value, metric.name))


def test_columns_attributes_and_expressions_can_be_compared_with_each_other() -> None:
    other = aliased(Article)
    for left, right in (
        (item.c.e, Article.embedding),
        (Article.embedding, other.embedding),
        (Article.embedding, item.c.e + V),
        (sv.l2_normalize(item.c.e), select(item.c.e).where(item.c.id == 1).scalar_subquery()),
    ):
        assert "<->" in sql(sv.l2_distance(left, right), POSTGRESQL)
        assert "vec_distance_l2(" in sql(sv.l2_distance(left, right), SQLITE)


FUNCTIONS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "add": (lambda: item.c.e + V, "(item.e + %(param_1)s::VECTOR)", "vector_add(item.e, ?)"),
    "sub": (lambda: item.c.e - V, "(item.e - %(param_1)s::VECTOR)", "vector_sub(item.e, ?)"),
    "mul": (lambda: item.c.e * V, "(item.e * %(param_1)s::VECTOR)", "vector_mul(item.e, ?)"),
    "concat": (lambda: item.c.e.concat([1, 2]), "(item.e || %(param_1)s::VECTOR)", "vector_concat(item.e, ?)"),
    "add, half": (lambda: item.c.h + V, "(item.h + %(param_1)s::HALFVEC)", "vector_add(item.h, ?)"),
    "l2_norm": (lambda: sv.l2_norm(item.c.e), "vector_norm(item.e)", "vector_l2_norm(item.e)"),
    "l2_norm, half": (lambda: sv.l2_norm(item.c.h), "l2_norm(item.h)", "vector_l2_norm(item.h)"),
    "l2_norm, sparse": (lambda: sv.l2_norm(item.c.s), "l2_norm(item.s)", "vector_sparse_l2_norm(item.s)"),
    "l2_normalize": (lambda: sv.l2_normalize(item.c.e), "l2_normalize(item.e)", "vector_l2_normalize(item.e)"),
    "l2_normalize, sparse": (
        lambda: sv.l2_normalize(item.c.s),
        "l2_normalize(item.s)",
        "vector_sparse_l2_normalize(item.s)",
    ),
    "vector_dims": (lambda: sv.vector_dims(item.c.e), "vector_dims(item.e)", "vec_length(item.e)"),
    "subvector": (
        lambda: sv.subvector(item.c.e, 2, 2),
        "subvector(item.e, 2, 2)",
        "vec_slice(item.e, 2 - 1, 2 - 1 + 2)",
    ),
    "binary_quantize": (
        lambda: sv.binary_quantize(item.c.e),
        "binary_quantize(item.e)::BIT(3)",
        "vector_binary_quantize(item.e)",
    ),
    "avg": (lambda: sv.avg(item.c.e), "avg(item.e)", "vector_avg(item.e)"),
    "sum": (lambda: sv.sum(item.c.e), "sum(item.e)", "vector_sum(item.e)"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_operator_and_function_compiles_on_both_databases(name: str) -> None:
    make, on_postgresql, on_sqlite = FUNCTIONS[name]
    assert sql(make(), POSTGRESQL) == on_postgresql
    assert on_sqlite in sql(make(), SQLITE)


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "inner_product"])
def test_similarity_is_written_over_the_distance(metric: str) -> None:
    found = sql(sv.similarity(item.c.e, V, metric), POSTGRESQL)
    expected = {
        "cosine": "1.0 - (item.e <=> ",
        "l2": "1.0 / CAST((1.0 + (item.e <-> ",
        "l1": "1.0 / CAST((1.0 + (item.e <+> ",
        "inner_product": "-(item.e <#> ",
    }
    assert found.startswith(expected[metric])


def test_the_similarity_of_bits_divides_by_their_number() -> None:
    assert sql(sv.similarity(item.c.b, BIT, "hamming"), POSTGRESQL).endswith("/ CAST(3.0 AS FLOAT(53))")
    with pytest.raises(InvalidOption, match="the similarity of bits needs their number"):
        sv.similarity(Column("b", BitVector()), BIT, "hamming")


def test_operators_apply_to_what_operators_give() -> None:
    assert sql((item.c.e - V) * item.c.e + V, SQLITE).count("vector_add(") == 1
    assert "vector_mul(" in sql((item.c.e - V) * item.c.e, SQLITE)
    assert sql(sv.subvector(item.c.e + item.c.e, 1, 2).l2_distance([1, 2]), POSTGRESQL) == (
        "(subvector((item.e + item.e), 1, 2) <-> %(param_1)s::VECTOR)"
    )


def test_a_distance_is_a_number_to_other_operators() -> None:
    d = item.c.e.l2_distance(V)
    assert isinstance((d * 2).type, type(d.type))
    assert isinstance((d < 0.5).right.type, type(d.type))
    assert isinstance((1 - d).type, type(d.type))


def test_dimensions_follow_through_functions() -> None:
    assert (item.c.e + V).type.dim == 3
    assert item.c.e.concat([1, 2]).type.dim == 5
    assert item.c.e.concat(item.c.h).type.dim == 6
    assert item.c.free.concat([1, 2]).type.dim is None
    assert sv.subvector(item.c.e, 2, 2).type.dim == 2
    quantized = sv.binary_quantize(item.c.e).type
    assert isinstance(quantized, BitVector)
    assert quantized.dim == 3
    # So a value of the wrong dimension is refused there too.
    with pytest.raises(DimensionMismatch, match="expected 5 dimensions, got 3"):
        sv.l2_distance(item.c.e.concat([1, 2]), V)


@pytest.mark.parametrize("function", ["l2_norm", "l2_normalize", "vector_dims", "binary_quantize", "avg", "sum"])
def test_functions_refuse_kinds_that_do_not_have_them(function: str) -> None:
    with pytest.raises(InvalidOption, match=rf"{function} is not defined for item\.b, a bit column"):
        getattr(sv, function)(item.c.b)


def test_operators_refuse_kinds_that_do_not_have_them() -> None:
    for make in (lambda: item.c.s + V, lambda: item.c.b - BIT, lambda: item.c.s * V, lambda: item.c.b.concat(BIT)):
        with pytest.raises(InvalidOption, match="is not defined for item"):
            make()


@pytest.mark.parametrize(
    ("start", "count", "message"),
    [
        (0, 1, "start must be a whole number from 1"),
        (-1, 1, "start must be a whole number from 1"),
        (1, 0, "count must be a whole number from 1"),
        (1.5, 1, "start must be a whole number from 1, got 1.5"),
        (True, 1, "start must be a whole number from 1, got True"),
        ("1", 1, "start must be a whole number from 1, got '1'"),
        (3, 2, r"elements 3 to 4 of item\.e with 3 dimensions"),
    ],
)
def test_subvector_refuses_what_is_outside(start: Any, count: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        sv.subvector(item.c.e, start, count)


@pytest.mark.parametrize("column", [item.c.name, item.c.id, "e", None, 3, item, func.now()])
def test_what_is_no_vector_column_is_refused(column: Any) -> None:
    with pytest.raises(InvalidOption, match="vector column"):
        sv.cosine_distance(column, V)
    with pytest.raises(InvalidOption, match="vector column"):
        sv.l2_norm(column)


@pytest.mark.parametrize(
    "value", [[1.0, 2.0], [1.0, float("nan"), 2.0], "[1,2,3]", [True, False, True], [[1.0, 2.0, 3.0]], b"\0" * 12, None]
)
def test_a_bad_operand_is_refused_when_the_statement_is_built(value: Any) -> None:
    for make in (
        lambda: item.c.e.cosine_distance(value),
        lambda: sv.similarity(item.c.e, value, "l2"),
        lambda: item.c.e + value,
        lambda: Article.embedding.l2_distance(value),
    ):
        with pytest.raises(InvalidVector, match=r"^(item\.e|article\.embedding): "):
            make()


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InvalidOption, match="unknown metric 'euclid'"):
        sv.distance(item.c.e, V, "euclid")


class TestCacheKeys:
    def different(self) -> list[Any]:
        """Expressions of which no two may share a compiled statement."""
        e, h, s, b = item.c.e, item.c.h, item.c.s, item.c.b
        distances = [
            sv.distance(column, BIT if column is b else V, metric.name)
            for metric in METRICS.values()
            for column in (e, h, s, b)
            if column.type.kind in metric.kinds
        ]
        similarities = [sv.similarity(e, V, metric) for metric in ("cosine", "l2", "l1", "inner_product")]
        functions = [make() for make, _, _ in FUNCTIONS.values()]
        slices = [sv.subvector(e, 1, 1), sv.subvector(e, 1, 2), sv.subvector(e, 2, 1)]
        concats = [e.concat([1]), item.c.free.concat([1])]
        return [*distances, *similarities, *functions, *slices, *concats]

    def test_no_two_expressions_share_one(self) -> None:
        statements = [select(item.c.id, expression) for expression in self.different()]
        keys = [statement._generate_cache_key() for statement in statements]
        assert all(key is not None for key in keys)
        for (left, one), (right, other) in itertools.combinations(zip(keys, statements, strict=True), 2):
            assert left.key != right.key, f"{one} and {other}"

    def test_no_two_metrics_share_one_in_order_by(self) -> None:
        keys = {
            select(item.c.id).order_by(sv.distance(item.c.e, V, metric))._generate_cache_key().key
            for metric in ("cosine", "l2", "l1", "inner_product")
        }
        assert len(keys) == 4

    def test_the_same_expression_with_other_values_shares_one(self) -> None:
        for make in (
            lambda v: select(item.c.e.cosine_distance(v)),
            lambda v: select(item).order_by(sv.l2_distance(item.c.e, v)).limit(3),
            lambda v: select(sv.similarity(item.c.e, v, "l1"), item.c.e + v),
            lambda v: update(item).values(e=v),
        ):
            assert make(V)._generate_cache_key().key == make([4.0, 5.0, 6.0])._generate_cache_key().key

    def test_types_are_part_of_the_key(self) -> None:
        types = [Vector(3), Vector(4), Vector(), HalfVector(3), SparseVector(3), BitVector(3)]
        keys = {select(Column("x", type_))._generate_cache_key().key for type_ in types}
        assert len(keys) == len(types)


class TestWithoutAnEngine:
    def test_printing_a_statement_is_readable(self) -> None:
        statement = select(item.c.id, item.c.e.cosine_distance(V).label("d")).order_by("d").limit(5)
        assert sql(statement) == (
            "SELECT item.id, cosine_distance(item.e, :param_1) AS d FROM item ORDER BY d LIMIT :param_2"
        )

    def test_every_expression_prints(self) -> None:
        for make, _, _ in FUNCTIONS.values():
            expression = make()
            assert str(expression).startswith(f"{expression.name}(item.")
        for metric in METRICS.values():
            column, value = (item.c.b, BIT) if "bit" in metric.kinds else (item.c.e, V)
            assert str(sv.distance(column, value, metric.name)).startswith(f"{metric.function}(item.")

    def test_every_kind_of_statement_prints(self) -> None:
        assert sql(insert(item).values(id=1, e=V)) == "INSERT INTO item (id, e) VALUES (:id, :e)"
        assert sql(update(item).values(e=item.c.e + V)) == "UPDATE item SET e=add(item.e, :param_1)"
        assert "FROM article" in sql(select(Article).order_by(Article.embedding.l2_distance(V)))

    def test_literal_binds_without_a_dialect(self) -> None:
        assert sql(item.c.e.l2_distance(V), literal_binds=True) == "l2_distance(item.e, '[1,2,3]')"

    def test_a_mock_engine_writes_a_script_for_each_database(self) -> None:
        for url, expected in (
            (
                "postgresql://",
                ["CREATE EXTENSION IF NOT EXISTS vector", "e VECTOR(3)", "h HALFVEC(3)", "s SPARSEVEC(3)"],
            ),
            ("sqlite://", ["e VECTOR(3)", "h HALFVEC(3)", "b BIT(3)", "free VECTOR"]),
        ):
            script: list[str] = []
            dialect = make_url(url).get_dialect()()

            def write(ddl: Any, *_: Any, script: list[str] = script, dialect: Dialect = dialect) -> None:
                script.append(sql(ddl, dialect))

            engine = create_mock_engine(url, write)
            metadata.create_all(engine, checkfirst=False)
            for part in expected:
                assert part in "\n".join(script)

    def test_another_database_can_print_but_says_nothing_of_its_own(self) -> None:
        assert "cosine_distance(item.e, " in sql(select(item.c.e.cosine_distance(V)), mysql.dialect())


class TestLiteralBinds:
    LITERALS = {
        "e": ("'[1,2,3]'::VECTOR", "X'0000803f0000004000004040'"),
        "h": ("'[1,2,3]'::HALFVEC", "X'0000803f0000004000004040'"),
        "s": ("'{1:1,2:2,3:3}/3'::SPARSEVEC", None),
    }

    @pytest.mark.parametrize("column", LITERALS)
    def test_values_are_written_out(self, column: str) -> None:
        on_postgresql, on_sqlite = self.LITERALS[column]
        d = sv.l2_distance(item.c[column], V)
        assert on_postgresql in sql(select(d), POSTGRESQL, literal_binds=True)
        found = sql(select(d), SQLITE, literal_binds=True)
        assert "?" not in found
        if on_sqlite:
            assert on_sqlite in found

    def test_bits_are_written_out(self) -> None:
        d = sv.hamming_distance(item.c.b, BIT)
        assert "'101'::BIT(3)" in sql(select(d), POSTGRESQL, literal_binds=True)
        assert "X'05'" in sql(select(d), SQLITE, literal_binds=True)

    def test_inserts_and_updates_are_written_out(self) -> None:
        assert sql(insert(item).values(id=1, e=V, s=SparseArray(3, {0: 1.0})), POSTGRESQL, literal_binds=True) == (
            "INSERT INTO item (id, e, s) VALUES (1, '[1,2,3]'::VECTOR, '{1:1}/3'::SPARSEVEC)"
        )
        assert sql(update(item).values(e=V), SQLITE, literal_binds=True) == (
            "UPDATE item SET e=X'0000803f0000004000004040'"
        )

    @pytest.mark.parametrize("dialect", [POSTGRESQL, SQLITE], ids=["postgresql", "sqlite"])
    def test_null_and_bad_values(self, dialect: Dialect) -> None:
        assert "NULL" in sql(insert(item).values(id=1, e=None), dialect, literal_binds=True)
        # SQLAlchemy wraps every error of a literal.
        with pytest.raises(CompileError) as caught:
            sql(insert(item).values(id=1, e="'); DROP TABLE item; --"), dialect, literal_binds=True)
        assert isinstance(caught.value.__cause__, InvalidVector)
        assert str(caught.value.__cause__).startswith("item.e: ")


class TestPickle:
    STATEMENTS = {
        "distance": lambda: select(item.c.id, sv.cosine_distance(item.c.e, V).label("d")).order_by("d"),
        "similarity": lambda: select(sv.similarity(item.c.e, V, "l2")),
        "functions": lambda: select(*(make() for make, _, _ in FUNCTIONS.values())),
        "insert": lambda: insert(item).values(id=1, e=V, s=SparseArray(3, {1: 1.0}), b=BIT),
        "nearest": lambda: sv.nearest(select(item), item.c.e, V, k=3),
    }

    @pytest.mark.parametrize("name", STATEMENTS)
    @pytest.mark.parametrize("dialect", [POSTGRESQL, SQLITE], ids=["postgresql", "sqlite"])
    def test_a_pickled_statement_is_the_same_statement(self, name: str, dialect: Dialect) -> None:
        statement = self.STATEMENTS[name]()
        before = statement.compile(dialect=dialect)
        restored = pickle.loads(pickle.dumps(statement)).compile(dialect=dialect)
        assert str(restored) == str(before)
        assert {k: repr(v) for k, v in restored.params.items()} == {k: repr(v) for k, v in before.params.items()}

    def test_statements_of_the_orm_go_through_sqlalchemys_serializer(self) -> None:
        for statement in (
            select(Article).order_by(Article.embedding.l1_distance(V)).limit(3),
            sv.nearest(select(Article), Article.embedding, V, k=3),
        ):
            restored = serializer.loads(serializer.dumps(statement), Base.metadata)
            assert sql(restored, POSTGRESQL) == sql(statement, POSTGRESQL)

    def test_pickled_metadata_has_its_types(self) -> None:
        restored = pickle.loads(pickle.dumps(metadata)).tables["item"]
        assert [type(c.type) for c in restored.c] == [type(c.type) for c in item.c]
        assert restored.c.e.type.dim == 3
        with pytest.raises(InvalidVector, match=r"^item\.e: "):
            restored.c.e.cosine_distance("x")
