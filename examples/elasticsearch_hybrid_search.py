"""Hybrid search: by meaning and by words at once, in Elasticsearch, with the objects of the database as the answer.

    python examples/elasticsearch_hybrid_search.py                                        # a node at http://localhost:9200
    python examples/elasticsearch_hybrid_search.py --elasticsearch https://search.example:9200
    python examples/elasticsearch_hybrid_search.py --url postgresql+psycopg://user:password@host/database

It needs ``pip install 'sqla-vector[sqlite,elasticsearch,examples]'``.  The rows are docstrings of the standard library,
and the embedder is scikit-learn's: nothing is downloaded.  A key is taken from the environment variable
ELASTICSEARCH_API_KEY.  What it makes (tables, and an index named ``sqla-vector-hybrid-search`` or as ``--index`` says)
is dropped at the end.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from elasticsearch import Elasticsearch
from search_python_docs import read_docstrings
from sqlalchemy import String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from text_to_vector_sync import make_embedder

from sqla_vector import Vector
from sqla_vector.elasticsearch import (
    DenseVector,
    Keyword,
    Knn,
    Match,
    Searcher,
    SearchIndex,
    SearchPage,
    Sync,
    Terms,
    check,
)
from sqla_vector.embedding import Fingerprint, embed, embedding_column
from sqla_vector.fusion import weighted
from sqla_vector.tracking import outbox_table, track, untrack

MODULES = ("csv", "json", "math", "random", "shutil", "string", "textwrap", "zipfile")


# --- 1. The model, and the outbox that tells of its changes. -------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A function or class and its docstring."""

    __tablename__ = "elasticsearch_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(20))
    text: Mapped[str]
    embedding: Mapped[np.ndarray | None] = embedding_column(Vector(64), source=("name", "text"), embedder="lsa")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


outbox = outbox_table(Base.metadata, name="elasticsearch_outbox")


def declare(name: str) -> SearchIndex:
    """Say what the documents of an entry have; the mapping follows from the columns."""
    return SearchIndex(
        name,
        Entry,
        fields={
            "name": "name",
            "kind": Keyword("kind"),
            "text": "text",
            "embedding": DenseVector("embedding", metric="cosine", index="int8_hnsw"),
        },
        outbox=outbox,
        settings={"number_of_replicas": 0},  # of a node that is alone
    )


# --- 2. Searches: vectors and words in, objects out. ----------------------------------------------------------------


def show(what: str, page: SearchPage[Entry]) -> None:
    print(f"{what}:")
    for hit in page:
        distance = "    -" if hit.distance is None else f"{hit.distance:.3f}"
        print(f"  {hit.rank}. {distance}  {hit.entity.kind:<8}  {hit.entity.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Hybrid search in Elasticsearch.")
    parser.add_argument("--url", default="sqlite://", help="the database (default: SQLite in memory)")
    parser.add_argument("--elasticsearch", default="http://localhost:9200", metavar="URL", help="the server")
    parser.add_argument("--index", default="sqla-vector-hybrid-search", help="the name of the index")
    arguments = parser.parse_args()

    docs = read_docstrings(MODULES)
    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    index = declare(arguments.index)
    engine = create_engine(arguments.url, plugins=["sqla_vector"])
    sessions = sessionmaker(engine)
    track(sessions, embedders={"lsa": embedder}, outbox=outbox, models=Base)

    with Elasticsearch(arguments.elasticsearch, api_key=os.environ.get("ELASTICSEARCH_API_KEY")) as client:
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        physical = index.create(client)
        try:
            # A program goes on as ever.  Beside it runs `sqla-vector es sync`, or this:
            sync = Sync(sessions, client, index)
            with sessions.begin() as session:
                session.add_all(Entry(name=name, kind=kind, text=text) for name, kind, text in docs)
            print(f"{sync.run(until_empty=True).written} of {len(docs)} documents written")

            searcher = Searcher(client, index)
            question = "choose a random element of a list"
            (vector,) = embed(embedder, [question])
            knn = Knn("embedding", vector)
            with sessions() as session:
                show("by meaning", searcher.search(session, knn=knn, k=3, refresh=True))
                show("by words", searcher.search(session, text=Match(question, ("name^2", "text")), k=3))
                show("by both", searcher.search(session, knn=knn, text=question, k=3))
                nearly = searcher.search(session, knn=knn, text=question, k=3, fusion=weighted(alpha=0.9))
                show("by both, words count for a tenth", nearly)
                page = searcher.search(session, knn=knn, text=question, where=Entry.kind == "class", k=3)
                show("by both, classes only", page)
                counted = searcher.search(session, text="file", aggs={"kinds": Terms("kind")}, k=1)
                kinds = {bucket["key"]: bucket["doc_count"] for bucket in counted.aggregations["kinds"]["buckets"]}
                print(f'entries with the word "file": {kinds}')

            with sessions.begin() as session:
                entry = session.scalars(select(Entry).where(Entry.name == "math.sqrt")).one()
                entry.text = "Unpack a parcel of tangerines."
            sync.run(until_empty=True)
            with sessions() as session:
                (hit,) = searcher.search(session, text="tangerines", k=1, refresh=True)
                print(f'"tangerines" finds {hit.entity.name}: {hit.entity.text}')
            print(f"equal to the database: {check(sessions, client, index).is_equal}")
        finally:
            client.indices.delete(index=physical)
            Base.metadata.drop_all(engine)
            untrack(sessions)
            engine.dispose()


if __name__ == "__main__":
    main()
