"""The error tree.

Every error of the package derives from :class:`VectorError`.  SQLAlchemy does not wrap these errors in
``StatementError``: a refused value surfaces as itself, whether it is refused when a statement is built or when
its parameters are prepared.
"""

from __future__ import annotations

from sqlalchemy.exc import DontWrapMixin

__all__ = [
    "BulkLoadError",
    "DatabaseRestored",
    "DimensionMismatch",
    "EmbedderError",
    "EmbedderUnavailable",
    "ExtensionMissing",
    "IndexDrift",
    "IndexExists",
    "IndexMissing",
    "IndexNotUsable",
    "InvalidDeclaration",
    "InvalidDocument",
    "InvalidFilter",
    "InvalidIdentifier",
    "InvalidOption",
    "InvalidQuery",
    "InvalidStatement",
    "InvalidText",
    "InvalidVector",
    "MigrationError",
    "ModelMismatch",
    "NonFiniteVector",
    "PackageMissing",
    "PluginMissing",
    "RerankerError",
    "RerankerUnavailable",
    "SearchError",
    "SearchUnavailable",
    "UnsupportedMetric",
    "VectorError",
]


def shown(value: object) -> str:
    """Return a value as messages have it, however long, deep or large it is."""
    try:
        found = repr(value)
    except (RecursionError, ValueError):  # of a number of thousands of digits
        return type(value).__name__
    return found if len(found) <= 60 else f"{found[:60]}..."


class VectorError(DontWrapMixin, Exception):
    """Base of every error raised by sqla_vector."""


class InvalidVector(VectorError, ValueError):
    """A value that is not a vector: wrong rank, wrong element type, overflow, text."""


class DimensionMismatch(InvalidVector):
    """A vector whose number of elements differs from the column's dimension."""


class NonFiniteVector(InvalidVector):
    """A vector with NaN or infinity, or with an element that overflows the column's element type."""


class InvalidOption(VectorError, ValueError):
    """An option out of its range: a dimension, ``k``, ``ef_search``, ``m``, ``lists``, an unknown name."""


class InvalidIdentifier(InvalidOption):
    """A name that cannot be used as an SQL identifier."""


class InvalidStatement(VectorError, ValueError):
    """A statement that :func:`sqla_vector.nearest` cannot extend, for example one that has a LIMIT already."""


class UnsupportedMetric(VectorError, ValueError):
    """A metric that the column type, the index method or the database does not have."""


class IndexNotUsable(VectorError):
    """A vector index that cannot be built here: its table, its key or this database does not allow it."""


class PluginMissing(VectorError):
    """SQLite without the engine plugin; the message names the line to add."""


class ExtensionMissing(VectorError):
    """A database extension, or a Python package, that is needed and is not there."""


class PackageMissing(ExtensionMissing, ImportError):
    """A module that needs a Python package, or a newer version of it, was imported without."""


class MigrationError(VectorError):
    """A migration step that cannot be done as it is written; nothing was changed by it."""


class InvalidDeclaration(VectorError, ValueError):
    """An embedded column whose model lacks something; the message shows the line to add."""


class InvalidText(VectorError, ValueError):
    """A text that cannot be embedded or searched for: no string, or no Unicode that can be encoded."""


class EmbedderError(VectorError):
    """An embedder that failed, or whose answer is not what was asked for; nothing of the answer is used."""


class EmbedderUnavailable(EmbedderError):
    """An embedder that cannot be reached or has no capacity now: nothing is wrong with the texts.

    Args:
        message: what happened.
        retry_after: seconds after which it asked to be tried again, if it said so.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelMismatch(VectorError):
    """A search by a model of which the column has no vector, while it has vectors of another one."""


class RerankerError(VectorError):
    """A reranker that failed, or whose answer is not what was asked for; nothing of the answer is used."""


class RerankerUnavailable(RerankerError):
    """A reranker that cannot be reached or has no capacity now: nothing is wrong with the texts.

    Args:
        message: what happened.
        retry_after: seconds after which it asked to be tried again, if it said so.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BulkLoadError(VectorError, ValueError):
    """A row that :func:`sqla_vector.bulk.load` cannot load: unknown, missing or surplus columns."""


class InvalidDocument(VectorError, ValueError):
    """A row that cannot be a document: a value that JSON or its field does not take, or a key that is too long."""


class IndexMissing(VectorError):
    """An Elasticsearch index that is declared and not there; a write never creates it."""


class IndexExists(VectorError):
    """An Elasticsearch index that was to be created and is there already."""


class IndexDrift(VectorError):
    """An Elasticsearch index whose mapping or settings are not those that are declared."""


class DatabaseRestored(VectorError):
    """An index with later versions than its database has come to: that was put back to an earlier state."""


class InvalidFilter(VectorError, ValueError):
    """A filter that cannot be translated, or a value of another type than its field or attribute."""


class InvalidQuery(VectorError, ValueError):
    """A query, given as data, that is none, or asks for more than it may."""


class SearchError(VectorError):
    """Elasticsearch refused a request or failed at it; the message has no address, no header and no key."""


class SearchUnavailable(SearchError):
    """Elasticsearch cannot be reached, is overloaded or did not answer in time; the same request may succeed later."""
