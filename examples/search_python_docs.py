"""Search the documentation of your own Python: a tutorial in one file.

    python examples/search_python_docs.py                        # a few questions, to look around
    python examples/search_python_docs.py read a csv file        # your own
    python examples/search_python_docs.py --kind class thread    # classes only

It takes the docstrings of the standard library, some thousands of texts that every machine has, turns each into a
vector, stores them with SQLAlchemy, and finds those nearest to a question.  Nothing is downloaded.  The database
is a SQLite file; with ``--url postgresql+psycopg://...`` it is PostgreSQL, and no other line changes.

Sections 1 to 3 are what a program of yours would look like; 4 and 5 supply the vectors and the texts.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, LargeBinary, Select, create_engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import Vector, VectorError, bulk, capabilities, nearest, nearest_to, search, vector_index

DIMENSIONS = 384
DATABASE = Path(__file__).resolve().parent.parent / ".demo" / "python_docs.db"
QUESTIONS = ("read a csv file", "copy a directory tree", "square root", "wait for several tasks")
console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False)


# --- 1. The model: a vector is a column like any other, and its index is declared beside it. -----------------------


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A function, class or module, and its docstring."""

    __tablename__ = "python_docs_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    text: Mapped[str]
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIMENSIONS))

    __table_args__ = (
        # On PostgreSQL pgvector's hnsw.  On SQLite a vec0 table, which keeps `kind` too, to filter by it.
        vector_index("python_docs_entry_embedding", "embedding", metric="cosine", include=("kind",)),
    )


class StoredModel(Base):
    """What turned the texts into vectors: kept with them, because vectors of two models cannot be compared."""

    __tablename__ = "python_docs_model"

    version: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


# --- 2. Searching: a select() goes in, a select() comes out. -------------------------------------------------------


def ask(session: Session, model: TextModel, question: str, k: int, kind: str | None = None) -> Entry | None:
    """Show the k entries nearest to a question, and return the first."""
    vector = model.embed(question)
    if not vector.any():
        console.print(f"No word of “{question}” occurs in the documentation.\n")
        return None
    stmt = select(Entry)
    if kind is not None:
        stmt = stmt.where(Entry.kind == kind)  # still k rows: the search is among the entries of this kind
    return show(session, nearest(stmt, Entry.embedding, vector, k=k), f"{question}{f' ({kind})' if kind else ''}")


def more_like(session: Session, entry: Entry, k: int) -> None:
    """Show the k entries nearest to an entry."""
    show(session, nearest_to(Entry.embedding, entry, k=k), f"more like {entry.name}")


def show(session: Session, stmt: Select[Any], title: str) -> Entry | None:
    """Run a nearest() statement, show what it finds, and return the first entry."""
    started = perf_counter()
    hits = search(session, stmt)
    title = f"{title}: {(perf_counter() - started) * 1000:.1f} ms"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, expand=True)
    table.add_column("#", justify="right")
    table.add_column("name", no_wrap=True, max_width=40)
    table.add_column("says", no_wrap=True, ratio=1, min_width=20)
    table.add_column("distance", justify="right")
    table.add_column("similarity", justify="right")
    for rank, hit in enumerate(hits, 1):
        first_line = hit.entity.text.strip().splitlines()[0]
        table.add_row(str(rank), hit.entity.name, first_line, f"{hit.distance:.3f}", f"{hit.similarity:.3f}")
    console.print(table)
    return hits[0].entity if hits else None


# --- 3. Storing: an ordinary engine with the plugin, ordinary tables, one bulk load. -------------------------------


def open_database(url: str | None) -> Engine:
    """Return an engine whose tables exist."""
    if url is None:
        DATABASE.parent.mkdir(exist_ok=True)
    # Where sqlite-vec cannot be loaded, the last argument leaves the index out, and searches scan; without it
    # create_all() would say what to install.
    engine = create_engine(url or f"sqlite:///{DATABASE}", plugins=["sqla_vector"], vector_skip_missing_index=True)
    Base.metadata.create_all(engine)
    return engine


def open_index(engine: Engine, modules: Sequence[str] = (), *, rebuild: bool = False) -> TextModel:
    """Return the model of the index; build both when they are missing or come from another Python."""
    version = f"tfidf-svd-{DIMENSIONS}, python {platform.python_version()}, {' '.join(modules) or 'all modules'}"
    with Session(engine) as session:
        stored = None if rebuild else session.get(StoredModel, version)
        if stored is not None:
            return TextModel.from_bytes(stored.data)

    started = perf_counter()
    entries = read_docstrings(modules)
    if len(entries) < 10:
        sys.exit(f"too little to search: {len(entries)} docstrings in {version}")
    console.print(f"{len(entries):7,} docstrings read      {perf_counter() - started:5.1f} s")
    started = perf_counter()
    # What says most about a thing: its name, and the first paragraph of its docstring.
    texts = [" ".join((name, name.split(".")[-1], text.split("\n\n")[0])) for name, _, text in entries]
    model = TextModel.fit(texts)
    matrix = np.stack([model.embed(text) for text in texts])
    console.print(f"{len(matrix):7,} vectors made         {perf_counter() - started:5.1f} s")
    started = perf_counter()
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    names, kinds, texts = (list(column) for column in zip(*entries, strict=True))
    with Session(engine) as session, session.begin():
        bulk.load(session, Entry, {"name": names, "kind": kinds, "text": texts, "embedding": matrix})
        session.add(StoredModel(version=version, data=model.to_bytes()))
    console.print(f"{len(matrix):7,} stored and indexed   {perf_counter() - started:5.1f} s\n")
    return model


# --- 4. Text to vectors: TF-IDF, then truncated SVD (latent semantic analysis, Deerwester et al. 1990). ------------


class TextModel:
    """Maps a text to a unit vector.  Any embedding model can take its place; this one needs no download."""

    def __init__(self, terms: Sequence[str], idf: np.ndarray, components: np.ndarray) -> None:
        self.terms, self.idf, self.components = terms, idf, components
        self._positions = {term: number for number, term in enumerate(terms)}

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TextModel:
        # Imported here: only building the index needs it, and the import takes longer than many searches.
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        rare, common = (2, 0.1) if len(texts) > 1000 else (1, 1.0)
        tfidf = TfidfVectorizer(
            tokenizer=split_words, token_pattern=None, min_df=rare, max_df=common, sublinear_tf=True
        )
        weights = tfidf.fit_transform(texts)
        svd = TruncatedSVD(min(DIMENSIONS, *weights.shape), random_state=0).fit(weights)
        components = np.zeros((weights.shape[1], DIMENSIONS), np.float32)
        components[:, : len(svd.components_)] = svd.components_.T
        return cls(tfidf.get_feature_names_out().tolist(), tfidf.idf_.astype(np.float32), components)

    def embed(self, text: str) -> np.ndarray:
        """Return the vector of a text, zero where no word is known."""
        known = [self._positions[word] for word in split_words(text) if word in self._positions]
        rows, counts = np.unique(np.array(known, dtype=int), return_counts=True)
        vector = ((1 + np.log(counts)) * self.idf[rows]).astype(np.float32) @ self.components[rows]
        return vector / (np.linalg.norm(vector) or 1)

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, terms=np.array(self.terms), idf=self.idf, components=self.components)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> TextModel:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(arrays["terms"].tolist(), arrays["idf"], arrays["components"])


STOP_WORDS = re.compile("an|and|are|as|at|be|by|for|from|if|in|into|is|it|its|of|on|or|that|the|this|to|with")


def split_words(text: str) -> list[str]:
    """Return the words of a text, those inside ``snake_case`` and ``CamelCase`` too, without their endings."""
    found = re.findall("[a-z][a-z0-9]+", re.sub("(?<=[a-z0-9])(?=[A-Z])|_", " ", text).lower())
    return [re.sub("(?<=.{4})(ing|ies|es|ed|s)$", "", word) for word in found if not STOP_WORDS.fullmatch(word)]


# --- 5. The texts.  Sources are parsed, not imported, so nothing runs and no window opens. -------------------------

LEFT_OUT = {"distutils", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
WRITTEN_IN_C = {"builtins", "cmath", "collections", "csv", "datetime", "functools", "io", "itertools", "math", "zlib"}
Docstring = tuple[str, str, str]
"""Qualified name, kind (function, class or module), text."""


def read_docstrings(modules: Sequence[str] = ()) -> list[Docstring]:
    """Return the docstrings of all that is public in the standard library, or in some of its modules."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Docstring] = {}
    known = sys.stdlib_module_names - LEFT_OUT
    for top in sorted(known.intersection(modules or known)):
        members = list(read_compiled(top)) if top in WRITTEN_IN_C else []
        for file in (library / f"{top}.py", *sorted((library / top).rglob("*.py"))):
            parts = file.relative_to(library).with_suffix("").parts
            if file.is_file() and not LEFT_OUT.intersection(parts):
                members += read_source(file, ".".join(part for part in parts if part != "__init__"))
        found |= {member[0]: member for member in members if member[0] not in found}
    return [member for name, member in found.items() if not re.search(r"(^|\.)_", name)]


def read_source(file: Path, module: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of invalid escapes in old modules
            nodes: list[tuple[Any, str]] = [(ast.parse(file.read_bytes()), module)]
    except (OSError, SyntaxError, ValueError):
        return
    while nodes:
        node, name = nodes.pop()
        kind = {"Module": "module", "ClassDef": "class"}.get(type(node).__name__, "function")
        if text := ast.get_docstring(node):
            yield name, kind, text
        if kind != "function":
            inner = (n for n in node.body if isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))
            nodes += ((n, f"{name}.{n.name}") for n in inner)


def read_compiled(module: str) -> Iterator[Docstring]:
    """Parts written in C have no source; these few harmless modules are imported and asked."""
    for name, member in vars(importlib.import_module(module)).items():
        if getattr(member, "__module__", None) not in (module, f"_{module}"):
            continue  # imported from elsewhere
        is_class = inspect.isclass(member)
        if (is_class or inspect.isbuiltin(member)) and (text := inspect.getdoc(member)):
            yield f"{module}.{name}", "class" if is_class else "function", text
        for method_name, method in vars(member).items() if is_class else ():
            if inspect.ismethoddescriptor(method) and (text := inspect.getdoc(method)):
                yield f"{module}.{name}.{method_name}", "function", text


# --- 6. The command line. ------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Search the documentation of your own Python.")
    parser.add_argument("question", nargs="*", help="what you are looking for, in English")
    parser.add_argument("--url", help="the database, for example postgresql+psycopg://... (default: a SQLite file)")
    parser.add_argument("--k", type=int, default=5, help="how many results (default: 5)")
    parser.add_argument("--kind", choices=("function", "class", "module"), help="only these")
    parser.add_argument("--modules", help="index only these, for example csv,json (default: all)")
    parser.add_argument("--rebuild", action="store_true", help="read the documentation again")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe or an old terminal may not know every character

    engine = open_database(options.url)
    model = open_index(engine, options.modules.split(",") if options.modules else (), rebuild=options.rebuild)
    able = capabilities(engine)
    index = able.index_methods[0] if able.index_methods else "no index (sqlite-vec cannot be loaded), so an exact scan"
    console.print(f"{able.database} through {able.driver}, searched by {index}\n")
    with Session(engine) as session:
        if options.question:
            first = ask(session, model, " ".join(options.question), options.k, options.kind)
        else:
            for question in QUESTIONS:
                first = ask(session, model, question, 3, options.kind)
            ask(session, model, QUESTIONS[-1], 3, "class")
        if first is not None:
            more_like(session, first, 3)
    if able.database == "sqlite":
        console.print("The same on PostgreSQL: pip install 'sqla-vector[postgresql]', then start this program with")
        console.print("--url postgresql+psycopg://user:password@host/database")
    engine.dispose()


if __name__ == "__main__":
    try:
        main()
    except (OperationalError, VectorError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
