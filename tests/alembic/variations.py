"""The models between which the matrix migrates: one table ``article`` in many forms, and its neighbours.

Each variation is a function that declares tables on a new MetaData. All of them are given to every database unless
they say otherwise; what a database cannot have (an index on a composite key on SQLite) a variation leaves out there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pgvector.sqlalchemy
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    text,
)

from sqla_vector import BitVector, HalfVector, SparseVector, Vector, vector_index

__all__ = ["SCHEMA", "VARIATIONS", "Embedding", "Variation", "WrappedVector"]

SCHEMA = "library"
"""A schema on PostgreSQL beside the default one."""


class Embedding(Vector):
    """A project's own subclass."""

    cache_ok = True


class WrappedVector(TypeDecorator[Any]):
    """A project's own type over a vector."""

    impl = Vector
    cache_ok = True


@dataclass(frozen=True)
class Variation:
    """A named set of models."""

    name: str
    declare: Callable[[MetaData, str], object]

    def metadata(self, family: str) -> MetaData:
        """Return the models for a database."""
        metadata = MetaData()
        Table(
            "author",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("name", String(40), nullable=False, index=True),
        )
        self.declare(metadata, family)
        return metadata


VARIATIONS: list[Variation] = []


def variation(declare: Callable[[MetaData, str], object]) -> Callable[[MetaData, str], object]:
    """Enter a function into :data:`VARIATIONS`, under its name."""
    VARIATIONS.append(Variation(declare.__name__, declare))
    return declare


def article(metadata: MetaData, *items: Any, key: Any = None, **options: Any) -> Table:
    """Declare the table; a title and a language are in every form of it."""
    keys = [Column("id", Integer, primary_key=True)] if key is None else key
    return Table(
        "article",
        metadata,
        *keys,
        Column("title", String(80), nullable=False),
        Column("lang", String(8)),
        *items,
        **options,
    )


def indexed(metadata: MetaData, type_: Any = None, **options: Any) -> Table:
    """Declare the table with one vector column and one index."""
    column = Column("embedding", Vector(8) if type_ is None else type_)
    return article(metadata, column, vector_index("ix_article_embedding", "embedding", **options))


@variation
def no_table(metadata: MetaData, family: str) -> None:
    pass


@variation
def no_vector(metadata: MetaData, family: str) -> None:
    article(metadata)


@variation
def vector(metadata: MetaData, family: str) -> None:
    article(metadata, Column("embedding", Vector(8)))


@variation
def another_dimension(metadata: MetaData, family: str) -> None:
    article(metadata, Column("embedding", Vector(16)))


@variation
def undimensioned(metadata: MetaData, family: str) -> None:
    article(metadata, Column("embedding", Vector()))


@variation
def half(metadata: MetaData, family: str) -> None:
    article(metadata, Column("embedding", HalfVector(8)))


@variation
def sparse(metadata: MetaData, family: str) -> None:
    article(metadata, Column("embedding", SparseVector(8)))


@variation
def bits(metadata: MetaData, family: str) -> None:
    article(metadata, Column("embedding", BitVector(8)))


@variation
def required(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8), nullable=False),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
    )


@variation
def cosine(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine")


@variation
def l2(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="l2")


@variation
def l1(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="l1")


@variation
def inner_product(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="inner_product")


@variation
def half_l2(metadata: MetaData, family: str) -> None:
    indexed(metadata, HalfVector(8), metric="l2")


@variation
def sparse_l1(metadata: MetaData, family: str) -> None:
    indexed(metadata, SparseVector(8), metric="l1")


@variation
def hamming(metadata: MetaData, family: str) -> None:
    indexed(metadata, BitVector(8), metric="hamming")


@variation
def jaccard(metadata: MetaData, family: str) -> None:
    indexed(metadata, BitVector(16), metric="jaccard")


@variation
def build_options(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", m=8, ef_construction=32)


@variation
def default_options(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", m=16, ef_construction=64)


@variation
def ivfflat(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", method="ivfflat")


@variation
def ivfflat_lists(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="l2", method="ivfflat", lists=7)


@variation
def auto(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="l2", method="auto")


@variation
def half_precision(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", precision="half")


@variation
def int8_precision(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="l2", precision="int8", value_range=2.5)


@variation
def binary_precision(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", precision="binary")


@variation
def binary_l2(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="l2", precision="binary")


@variation
def many_dimensions(metadata: MetaData, family: str) -> None:
    indexed(metadata, Vector(2100), metric="cosine")


@variation
def included(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", include=("lang", "title"))


@variation
def partitioned(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", partition_by="lang", include=("title",))


@variation
def included_columns_of_its_own(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8)),
        Column("rating", Float),
        Column("public", Boolean, nullable=False),
        Column("written", DateTime),
        Column("distance", Integer),
        vector_index("ix_article_embedding", "embedding", include=("rating", "public", "written", "distance")),
    )


@variation
def partial(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine", where=text("id > 3 AND lang IS NOT NULL"))


@variation
def partial_with_odd_strings(metadata: MetaData, family: str) -> None:
    where = text(r"title LIKE '50 \% o''clock\:%' OR title = '12\:30 %(a)s \:b \"c\"'")
    indexed(metadata, metric="cosine", where=where)


@variation
def partial_by_expression(metadata: MetaData, family: str) -> None:
    column = Column("published", Boolean)
    article(
        metadata,
        Column("embedding", Vector(8)),
        column,
        vector_index("ix_article_embedding", "embedding", where=column.is_(True)),
    )


@variation
def two_indexes(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8)),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
        vector_index("ix_article_embedding_l2", "embedding", metric="l2", precision="half"),
    )


@variation
def two_columns(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8)),
        Column("thumbnail", BitVector(8)),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
        vector_index("ix_article_thumbnail", "thumbnail"),
    )


@variation
def renamed_column(metadata: MetaData, family: str) -> None:
    column = Column("body_embedding", Vector(8))
    article(metadata, column, vector_index("ix_article_embedding", "body_embedding", metric="cosine"))


@variation
def unique_beside(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8)),
        UniqueConstraint("lang", "title", name="uq_article_title"),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
    )


@variation
def unique_index_beside(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8)),
        Column("slug", String(20)),
        Index("ix_article_slug", "slug", unique=True),
        Index("ix_article_lang", "lang"),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
    )


@variation
def text_key(metadata: MetaData, family: str) -> None:
    Table(
        "page",
        metadata,
        Column("path", Text, primary_key=True),
        Column("embedding", Vector(8)),
        vector_index("ix_page_embedding", "embedding", metric="l2"),
    )
    article(
        metadata, Column("author_id", ForeignKey("author.id", name="fk_article_author")), Column("embedding", Vector(8))
    )


@variation
def composite_key(metadata: MetaData, family: str) -> None:
    Table(
        "chunk",
        metadata,
        Column("document", Integer, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("embedding", Vector(8)),
        *([vector_index("ix_chunk_embedding", "embedding")] if family == "postgresql" else []),
    )


@variation
def uuid_key(metadata: MetaData, family: str) -> None:
    Table(
        "token",
        metadata,
        Column("id", Uuid(as_uuid=False), primary_key=True),
        Column("embedding", HalfVector(8)),
        *([vector_index("ix_token_embedding", "embedding", metric="l2")] if family == "postgresql" else []),
    )


@variation
def another_schema(metadata: MetaData, family: str) -> None:
    Table(
        "article",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("lang", String(8)),
        Column("embedding", Vector(8)),
        vector_index("ix_article_embedding", "embedding", where=text("lang = 'en'")),
        schema=SCHEMA if family == "postgresql" else None,
    )
    if family == "postgresql":
        indexed(metadata, metric="l2", method="ivfflat")


@variation
def as_pgvector_python_declares(metadata: MetaData, family: str) -> None:
    column = Column("embedding", Vector(8))
    article(
        metadata,
        column,
        Index(
            "ix_article_embedding",
            column,
            postgresql_using="hnsw",
            postgresql_with={"m": 8, "ef_construction": 32},
            postgresql_ops={"embedding": "vector_l2_ops"},
        ),
    )


@variation
def of_pgvector_sqlalchemy(metadata: MetaData, family: str) -> None:
    indexed(metadata, metric="cosine")
    column = Column("embedding", pgvector.sqlalchemy.HALFVEC(8))
    Table(
        "item",
        metadata,
        Column("id", Integer, primary_key=True),
        column,
        Index("ix_item_embedding", column, postgresql_using="hnsw", postgresql_ops={"embedding": "halfvec_l2_ops"}),
    )


@variation
def strict_table(metadata: MetaData, family: str) -> None:
    Table(
        "strict_article",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("lang", Text),
        Column("embedding", Vector(8)),
        vector_index("ix_strict_article", "embedding", metric="l2", include=("lang",)),
        sqlite_strict=True,
    )


@variation
def with_variants(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Vector(8).with_variant(LargeBinary(), "mysql")),
        Column("summary", JSON().with_variant(HalfVector(8), "postgresql")),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
    )


@variation
def of_own_types(metadata: MetaData, family: str) -> None:
    article(
        metadata,
        Column("embedding", Embedding(8)),
        Column("wrapped", WrappedVector(8)),
        vector_index("ix_article_embedding", "embedding", metric="cosine"),
    )


@variation
def odd_names(metadata: MetaData, family: str) -> None:
    Table(
        "Order Item",
        metadata,
        Column("Group", Integer, primary_key=True),
        Column("select", String(8), key="chosen"),
        Column("Embedding", Vector(8), key="vector"),
        UniqueConstraint("chosen", name="uq Order"),
        vector_index("IX_Item_with_a_name_that_is_as_long_as_names_can_be_on_postgres", "vector", metric="l2"),
    )


@variation
def naming_convention(metadata: MetaData, family: str) -> None:
    metadata.naming_convention = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
        }
    ).naming_convention
    Table(
        "part",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("author_id", ForeignKey("author.id"), index=True),
        Column("slug", String(20), unique=True),
        Column("embedding", Vector(8)),
        vector_index("ix_part_embedding", "embedding", metric="cosine"),
    )
