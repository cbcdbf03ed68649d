"""What a declaration makes of columns, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ForeignKey, Interval
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_vector import BitVector, Vector
from sqla_vector.elasticsearch import DenseVector, Field, Keyword, Nested, SearchIndex, Text, sizing
from sqla_vector.exc import InvalidDeclaration, InvalidIdentifier, InvalidOption, UnsupportedMetric
from sqla_vector.metrics import METRICS
from sqla_vector.tracking import outbox_table
from sqla_vector.tracking.mirrors import mirrors
from tests.elasticsearch.library import library

WHOLE = {"keyword": {"type": "keyword", "ignore_above": 8191}}


def declare(fields: Any, class_: str = "Article", name: str = "articles", **options: Any) -> SearchIndex:
    base = library()
    return SearchIndex(name, getattr(base, class_), fields=fields, outbox=base.outbox, **options)


@pytest.mark.parametrize(
    ("path", "mapping"),
    [
        ("title", {"type": "text", "fields": WHOLE}),
        ("body", {"type": "text"}),
        ("views", {"type": "long"}),
        ("score", {"type": "double"}),
        ("price", {"type": "double"}),
        ("is_free", {"type": "boolean"}),
        ("published", {"type": "date", "format": "strict_date_optional_time"}),
        ("day", {"type": "date", "format": "strict_date_optional_time"}),
        ("at", {"type": "keyword"}),
        ("state", {"type": "keyword"}),
        ("token", {"type": "keyword"}),
        ("extra", {"type": "object", "enabled": False}),
        ("author.country.name", {"type": "text", "fields": WHOLE}),
        ("tags.name", {"type": "text", "fields": WHOLE}),
    ],
)
def test_a_mapping_follows_from_the_column(path: str, mapping: dict[str, Any]):
    assert declare({"x": path}).fields["x"].mapping() == mapping


def test_every_parameter_can_be_given():
    index = declare(
        {
            "title": Text("title", analyzer="english"),
            "plain": Text("title", keyword=False),
            "body": Text("body", keyword=True),
            "lang": Keyword("lang", normalizer="lower"),
            "views": Field("views", type="integer"),
            "price": Field("price", type="keyword"),
            "published": Field("published", type="date_nanos"),
            "day": Field("day", index=False),
            "state": Keyword("state"),
        }
    )
    assert {name: spec.mapping() for name, spec in index.fields.items()} == {
        "title": {"type": "text", "analyzer": "english", "fields": WHOLE},
        "plain": {"type": "text"},
        "body": {"type": "text", "fields": WHOLE},
        "lang": {"type": "keyword", "ignore_above": 8191, "normalizer": "lower"},
        "views": {"type": "integer"},
        "price": {"type": "keyword"},
        "published": {"type": "date_nanos"},
        "day": {"type": "date", "format": "strict_date_optional_time", "index": False},
        "state": {"type": "keyword"},
    }
    assert {name: spec.exact for name, spec in index.fields.items()} == {
        "title": "title.keyword",
        "plain": None,
        "body": "body.keyword",
        "lang": "lang",
        "views": "views",
        "price": "price",
        "published": "published",
        "day": None,
        "state": "state",
    }


def test_a_list_of_attributes_declares_fields_of_their_names():
    index = declare(["title", "embedding"])
    assert {name: spec.path for name, spec in index.fields.items()} == {"title": "title", "embedding": "embedding"}
    assert index.fields["embedding"].kind == "dense_vector"


@pytest.mark.parametrize("metric", [m.name for m in METRICS.values() if "vector" in m.kinds and m.name != "l1"])
def test_the_similarity_is_that_of_the_metric(metric: str):
    spec = declare({"v": DenseVector("embedding", metric=metric, index="hnsw", m=32, ef_construction=200)}).vectors["v"]
    assert spec.mapping() == {
        "type": "dense_vector",
        "dims": 3,
        "index": True,
        "similarity": {"cosine": "cosine", "l2": "l2_norm", "inner_product": "max_inner_product"}[metric],
        "index_options": {"type": "hnsw", "m": 32, "ef_construction": 200},
    }
    assert (spec.metric, spec.dim, spec.similarity) == (metric, 3, METRICS[metric].elasticsearch_similarity)


def test_vectors_have_defaults():
    index = declare({"v": "embedding", "h": "half", "b": "bits", "o": DenseVector("embedding", oversample=2.0)})
    assert [(s.metric, s.index, s.element_type) for s in index.vectors.values()] == [
        ("cosine", "int8_hnsw", "float"),
        ("cosine", "int8_hnsw", "float"),
        ("hamming", "hnsw", "bit"),
        ("cosine", "int8_hnsw", "float"),
    ]
    assert index.fields["b"].mapping() == {
        "type": "dense_vector",
        "dims": 16,
        "index": True,
        "similarity": "l2_norm",
        "element_type": "bit",
        "index_options": {"type": "hnsw", "m": 16, "ef_construction": 100},
    }
    options = {"type": "int8_hnsw", "m": 16, "ef_construction": 100, "rescore_vector": {"oversample": 2.0}}
    assert index.fields["o"].mapping()["index_options"] == options


def test_nested_objects_have_fields():
    index = declare(
        {"comments": Nested("comments", {"who": "author.name", "stars": "stars", "v": DenseVector("embedding")})}
    )
    spec = index.fields["comments"]
    mapping = spec.mapping()
    assert (mapping["type"], mapping["dynamic"], list(mapping["properties"])) == (
        "nested",
        "strict",
        ["who", "stars", "v"],
    )
    assert list(index.vectors) == ["comments.v"]
    assert index.vectors["comments.v"].path == "comments.embedding"
    assert (spec.path, spec.is_collection, spec.attribute.key) == ("comments", True, "comments")
    assert index.mirror.paths == ("comments.author.name", "comments.stars", "comments.embedding")


def test_a_field_knows_its_attribute():
    index = declare({"author": "author.name", "country": "author.country.name", "tags": "tags.name", "lang": "lang"})
    assert [(str(s.attribute), s.relations, s.is_collection) for s in index.fields.values()] == [
        ("Author.name", ("author",), False),
        ("Country.name", ("author", "country"), False),
        ("Tag.name", ("tags",), True),
        ("Article.lang", (), False),
    ]


def test_the_mapping_is_strict_and_says_what_it_is_of():
    index = declare(["title"])
    mapping = index.mapping()
    assert mapping["dynamic"] == "strict"
    assert mapping["_meta"] == {
        "sqla_vector": {"format": 1, "entity": "article", "definition": index.definition},
    }
    assert mapping["properties"]["_sqla_vector"]["properties"]["hash"] == {"type": "keyword"}


def test_a_definition_changes_with_mapping_and_settings():
    plain = declare(["title"]).definition
    assert declare(["title"]).definition == plain
    assert declare({"title": Text("title", analyzer="simple")}).definition != plain
    assert declare(["title"], settings={"number_of_replicas": 2}).definition != plain


def test_a_class_may_be_incomplete_when_it_is_declared():
    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Any] = relationship("Author")

    index = SearchIndex("articles", Article, fields={"author": "author.name"}, outbox=outbox_table(Base.metadata))

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    assert index.fields["author"].attribute is Author.name
    assert index.target.table is Article.__table__


def test_a_declaration_is_a_mirror():
    index = declare({"author": "author.name", "title": "title", "again": "title"})
    assert index.mirror in mirrors()
    assert index.mirror.paths == ("author.name", "title")
    assert (index.channel, index.entity, index.target.columns) == ("articles", "article", ())


@pytest.mark.parametrize("name", ["my-articles", "embedding", "user", "artículos", "a" * 200, "2024"])
def test_a_name_that_is_no_identifier_has_a_channel_all_the_same(name: str):
    index = declare(["title"], name=name)
    assert index.channel != name
    assert index.channel.isidentifier()
    assert len(index.channel) <= 63


def test_two_names_have_two_channels():
    assert declare(["title"], name="a-b").channel != declare(["title"], name="a.b").channel


@pytest.mark.parametrize(
    "name",
    [
        *[
            "_all",
            "*",
            "articles*",
            "../x",
            "Articles",
            "",
            ".",
            "..",
            ".hidden",
            "-x",
            "+x",
            "_x",
            "a,b",
            "a b",
            "a#b",
        ],
        *[
            "a#b",
            "a:b",
            "a/b",
            "a\\b",
            'a"b',
            "a<b",
            "a|b",
            "a?b",
            "a\nb",
            "a\0b",
            "x" * 201,
            "x-rebuild",
            None,
            7,
            "\ud800",
        ],
    ],
)
def test_a_name_that_no_index_can_have_is_refused(name: Any):
    with pytest.raises(InvalidIdentifier):
        declare(["title"], name=name)


@pytest.mark.parametrize("name", ["_id", "_sqla_vector", "a.b", "", "a b", "*", "a\0", 7, None, "x" * 300])
def test_a_name_that_no_field_can_have_is_refused(name: Any):
    with pytest.raises(InvalidIdentifier, match="cannot name a field"):
        declare({name: "title"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": "nothing"}, "Article.nothing is no mapped column"),
        ({"x": "title.name"}, "Article.title is no relationship"),
        ({"x": "author"}, "Article.author is a relationship"),
        ({"x": "raw"}, "has bytes"),
        ({"x": "sparse"}, "is a sparse vector"),
        ({"x": "free"}, "needs a dimension"),
        ({"x": DenseVector("title")}, "and no vector"),
        ({"x": Text("embedding")}, "declare it by DenseVector"),
        ({"x": Field("embedding", index=False)}, "declare it by DenseVector"),
        ({"x": "tags.embedding"}, r"put it into Nested\(...\)"),
        ({"x": "written.text"}, 'lazy="dynamic"'),
        ({"x": Nested("written", ["text"])}, 'lazy="dynamic"'),
        ({"x": Nested("title", ["text"])}, "Article.title is no relationship"),
        ({"x": Nested("comments", ["nothing"])}, "Comment.nothing is no mapped column"),
        ({"x": DenseVector("embedding", index="bbq_hnsw")}, "takes 64 at least"),
        ({"x": DenseVector("embedding", index="int4_hnsw")}, "even numbers only"),
        ({"x": DenseVector("bits", index="int8_hnsw")}, "has bits already"),
    ],
)
def test_what_cannot_be_a_field_is_refused(fields: Any, message: str):
    with pytest.raises(InvalidDeclaration, match=message):
        _ = declare(fields).fields


def test_what_needs_no_related_class_is_refused_at_the_declaration():
    with pytest.raises(InvalidDeclaration, match="takes 64 at least"):
        declare({"x": DenseVector("embedding", index="bbq_hnsw")})


def test_a_refused_declaration_leaves_the_name_free():
    base = library()
    with pytest.raises(InvalidDeclaration):
        SearchIndex("articles", base.Article, fields=["nothing"], outbox=base.outbox)
    SearchIndex("articles", base.Article, fields=["title"], outbox=base.outbox)
    with pytest.raises(InvalidOption, match="articles is declared already"):
        SearchIndex("articles", base.Article, fields=["title"], outbox=base.outbox)


@pytest.mark.parametrize(
    ("type_", "declared", "message"),
    [
        (Vector(4097), DenseVector("x"), "takes 4,096 at most"),
        (BitVector(12), DenseVector("x"), "multiples of 8"),
        (BitVector(32_776), DenseVector("x"), "takes 32,768 at most"),
        (Interval(), "x", "no field type follows from"),
    ],
)
def test_limits_of_the_server_are_known_at_the_declaration(type_: Any, declared: Any, message: str):
    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        x: Mapped[Any] = mapped_column(type_)

    with pytest.raises(InvalidDeclaration, match=message):
        SearchIndex("things", Thing, fields={"x": declared}, outbox=outbox_table(Base.metadata))


@pytest.mark.parametrize(("path", "metric"), [("embedding", "l1"), ("embedding", "hamming"), ("bits", "jaccard")])
def test_metrics_that_elasticsearch_has_not_are_refused(path: str, metric: str):
    with pytest.raises(UnsupportedMetric):
        declare({"x": DenseVector(path, metric=metric)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Field(""), "declared by the attribute"),
        (lambda: Field("a..b"), "declared by the attribute"),
        (lambda: Field(7), "declared by the attribute"),  # type: ignore[arg-type]
        (lambda: Field("a; DROP TABLE x"), "declared by the attribute"),
        (lambda: Field("x", type=7), "name of a field type"),
        (lambda: Field("x", type="dense_vector"), r"declared by DenseVector\(...\)"),
        (lambda: Field("x", type="nested"), r"declared by Nested\(...\)"),
        (lambda: Field("x", properties={}), "no parameter properties="),
        (lambda: Field("x", copy_to="y"), "no parameter copy_to="),
        (lambda: Text("x", type="keyword"), "has its type"),
        (lambda: Keyword("x", type="text"), "has its type"),
        (lambda: Text("x", keyword=1), "keyword= is True or False"),  # type: ignore[arg-type]
        (lambda: Text("x", keyword=True, fields={}), "all sub-fields by fields="),
        (lambda: DenseVector("x", index="ivf"), "index= is one of hnsw"),
        (lambda: DenseVector("x", m=1), "from 2 to 512"),
        (lambda: DenseVector("x", m=True), "from 2 to 512"),
        (lambda: DenseVector("x", ef_construction=4000), "from 1 to 3,200"),
        (lambda: DenseVector("x", index="flat", m=16), "is about a graph, and flat has none"),
        (lambda: DenseVector("x", oversample=0.5), "oversample= is 0, or from 1"),
        (lambda: DenseVector("x", oversample=float("nan")), "oversample= is 0, or from 1"),
        (lambda: DenseVector("x", index="hnsw", oversample=2), "hnsw has full ones"),
        (lambda: Nested("x", []), "an index has fields"),
        (lambda: Nested("x", {"y": Nested("z", ["a"])}), "nested in something nested"),
        (lambda: declare("title"), "fields= is a dict"),
        (lambda: declare(7), "fields= is a dict"),
        (lambda: declare({}), "an index has fields"),
        (lambda: declare(["title", "title"]), "declared twice"),
        (lambda: declare([Text("title")]), "names of attributes only"),
        (lambda: declare({"x": 7}), "is an attribute or a Field"),
        (lambda: declare({"x": DenseVector("embedding", metric="euclid")}), "unknown metric"),
        (lambda: SearchIndex("x", int, fields=["x"], outbox=library().outbox), "is of a mapped class"),
        (lambda: SearchIndex("x", library().Article, fields=["title"], outbox=7), "outbox="),  # type: ignore[arg-type]
        (lambda: declare(["title"], expected_size="300"), "expected_size="),
        (lambda: declare(["title"], expected_size="-1gb"), "expected_size="),
        (lambda: declare(["title"], expected_size=-1), "expected_size="),
        (lambda: declare(["title"], expected_size=True), "expected_size="),
    ],
)
def test_options_are_checked(make: Any, message: str):
    with pytest.raises(InvalidOption, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (7, "settings= is a dict"),
        ({"number_of_shards": 0}, "from 1 to 1,024"),
        ({"number_of_shards": 1025}, "from 1 to 1,024"),
        ({"index": {"number_of_replicas": -1}}, "from 0 to 100"),
        ({"number_of_replicas": True}, "from 0 to 100"),
        ({"refresh_interval": "often"}, "is a time such as"),
        ({"gc_deletes": "-1"}, "is a time such as"),
        ({"gc_deletes": "10s"}, "brings deleted documents back"),
        ({"blocks.write": True}, "unknown setting index.blocks.write"),
        ({"default_pipeline": "x"}, "unknown setting index.default_pipeline"),
        ({"numbr_of_shards": 1}, "unknown setting index.numbr_of_shards"),
        ({"mapping.source.mode": "synthetic"}, "cannot be given"),
        ({"codec": None}, "is a text, a number, a boolean or a list"),
        ({7: 1}, "the name of a setting is a text"),
        ({"codec": "default", "index.codec": "default"}, "given twice"),
    ],
)
def test_settings_are_checked(settings: Any, message: str):
    with pytest.raises(InvalidOption, match=message):
        declare(["title"], settings=settings)


def test_settings_are_advised_and_can_be_given():
    assert declare(["title"]).settings() == {
        "index.number_of_shards": 1,
        "index.number_of_replicas": 1,
        "index.refresh_interval": "1s",
        "index.gc_deletes": "1h",
        "index.mapping.exclude_source_vectors": False,
    }
    given = {
        "index": {"number_of_replicas": 0, "analysis": {"analyzer": {"a": {"type": "custom"}}}},
        "codec": "default",
    }
    settings = declare(["title"], settings={**given, "gc_deletes": "2h", "refresh_interval": -1}).settings()
    assert settings["index.number_of_replicas"] == 0
    assert settings["index.analysis.analyzer.a.type"] == "custom"
    assert (settings["index.codec"], settings["index.refresh_interval"]) == ("default", -1)
    assert declare(["title"], settings={"gc_deletes": "2h"}).tombstone_seconds == 7200
    assert "index.number_of_replicas" not in declare(["title"], settings={"auto_expand_replicas": "0-1"}).settings()


@pytest.mark.parametrize(
    ("size", "shards"),
    [(None, 1), (0, 1), ("29gb", 1), ("31gb", 2), ("300 GB", 10), (20_000_000, 1), (100_000_000, 4), ("100pb", 1024)],
)
def test_shards_follow_from_the_expected_size(size: Any, shards: int):
    assert declare(["title", "embedding"], expected_size=size).settings()["index.number_of_shards"] == shards
    given = declare(["title"], expected_size=size, settings={"number_of_shards": 7})
    assert given.settings()["index.number_of_shards"] == 7


def test_sizes_are_those_of_the_manual():
    # 1,000,000 vectors of 1,024 float32 with m=16, as in "Tune approximate kNN search".
    plan = sizing(1_000_000, 1024, "hnsw", other_bytes=0, vectors_in_source=False)
    assert plan.memory == plan.disk == 4_160_000_000
    assert sizing(1_000_000, 1024, "int8_hnsw").memory == 1_000_000 * (1024 + 4 + 64)
    assert sizing(1_000_000, 1024, "int4_flat").memory == 1_000_000 * (512 + 4)
    assert sizing(1_000_000, 1024, "bbq_hnsw", m=32).memory == 1_000_000 * (128 + 14 + 128)
    assert sizing(1_000_000, 1024, "hnsw", bits=True).memory == 1_000_000 * (128 + 64)
    # "When int8 quantizing 40 GB of floating point vectors an extra 10 GB will be stored."
    plan = sizing(10_000_000, 1000, "int8_flat", other_bytes=0, vectors_in_source=False)
    assert round(plan.disk / 1e9) == 50


def test_nodes_are_enough_for_memory_disk_and_copies():
    small = sizing(1000, 8)
    assert (small.shards, small.nodes, small.total_disk) == (1, 2, 2 * small.disk)
    large = sizing(1_000_000_000, 384, "bbq_hnsw")
    assert large.nodes * (64e9 - 31e9) * 0.9 >= large.total_memory
    assert large.nodes * 2e12 * 0.85 >= large.total_disk
    assert large.shards * 30e9 >= large.disk


@pytest.mark.parametrize(
    "options",
    [
        *[{"vectors": -1}, {"dimensions": 0}, {"m": 1}, {"index": "ivf"}, {"replicas": -1}, {"vectors": 2.5}],
        *[{"node_memory": 0}, {"node_disk": True}, {"other_bytes": -1}],
    ],
)
def test_sizes_of_nonsense_are_refused(options: Any):
    with pytest.raises(InvalidOption):
        sizing(**{"vectors": 1, "dimensions": 1, **options})
