"""The SQL of an index in lists: its table of centroids, and the calls of the functions that use it.

The vec0 table has the list's number as its first partition key.  vec0 looks for the chunks of a partition in a table
without an index on it, and to tell which rows a list has takes another; the two are created on its tables.
"""

from __future__ import annotations

from collections.abc import Callable

from sqla_vector.dialects.sqlite.index import Vec0Index

__all__ = ["ListStatements"]


class ListStatements:
    """The SQL around the centroids of a :class:`Vec0Index` in lists.

    Args:
        index: the index.
        prefix: the schema with its dot, or nothing.
        quote: quotes a name.
    """

    def __init__(self, index: Vec0Index, prefix: str, quote: Callable[[str], str]) -> None:
        self._index = index
        self._prefix = prefix
        self._quote = quote

    def _name(self, suffix: str = "") -> str:
        return self._quote(f"{self._index.name}{suffix}")

    def create_centroids(self) -> str:
        """Return the statement that creates the table of centroids.

        ``rows`` is how many there were when the lists were trained, and the default of ``wanted`` tells how many
        lists were asked for.
        """
        lists = "NULL" if self._index.lists is None else str(self._index.lists)
        return (
            f"CREATE TABLE {self._prefix}{self._quote(self._index.centroids_name)} "
            "(number INTEGER PRIMARY KEY CHECK (number = 1), generation TEXT NOT NULL, rows INTEGER NOT NULL, "
            f"lists INTEGER NOT NULL, wanted INTEGER DEFAULT {lists}, centroids BLOB NOT NULL)"
        )

    def create_lookups(self) -> list[str]:
        """Return the statements that create the indexes on vec0's own tables."""
        chunks, rowids = f"{self._index.name}_chunks", f"{self._index.name}_rowids"
        return [
            f"CREATE INDEX {self._prefix}{self._name('_chunks_list')} ON {self._quote(chunks)} (partition00)",
            f"CREATE INDEX {self._prefix}{self._name('_rowids_chunk')} ON {self._quote(rowids)} (chunk_id)",
        ]

    def train(self, source: str, vector: str, has_place: str) -> str:
        """Return the statement that trains the lists from the rows of ``source``; without rows there is one list."""
        lists = "NULL" if self._index.lists is None else str(self._index.lists)
        trained = f"vector_ivf_train({vector}, '{self._index.space}', {lists})"
        return (
            f"REPLACE INTO {self._prefix}{self._quote(self._index.centroids_name)} "
            "(number, generation, rows, lists, centroids) "
            f"SELECT 1, '{self._index.name}:' || lower(hex(randomblob(16))), rows, length(trained) / "
            f"{4 * self.width}, trained FROM (SELECT count(*) AS rows, "
            f"coalesce({trained}, zeroblob({4 * self.width})) AS trained FROM {source} WHERE {has_place})"
        )

    def untrained(self) -> str:
        """Return the statement that makes one list, without calling a function of this package."""
        return (
            f"INSERT INTO {self._prefix}{self._quote(self._index.centroids_name)} "
            "(number, generation, rows, lists, centroids) "
            f"VALUES (1, '{self._index.name}:' || lower(hex(randomblob(16))), 0, 1, zeroblob({4 * self.width}))"
        )

    @property
    def width(self) -> int:
        """The number of elements of a centroid."""
        dim = self._index.key.dim
        return -(-dim // 8) * 8 if self._index.space == "bits" else dim

    def list_of(self, vector: str) -> str:
        """Return the number of the list that a vector belongs to, in SQL."""
        return f"vector_ivf_list({vector}, '{self._index.space}', {self._centroids_if_unknown})"

    def probed(self, query: str, probes: int | None) -> str:
        """Return the lists to search in, as JSON, in SQL."""
        count = "NULL" if probes is None else str(probes)
        return f"vector_ivf_probe({query}, {count}, '{self._index.space}', {self._centroids_if_unknown})"

    @property
    def _centroids_if_unknown(self) -> str:
        """The generation, and the centroids unless the connection has those of this generation."""
        table = f"{self._prefix}{self._quote(self._index.centroids_name)}"
        generation = f"(SELECT generation FROM {table})"
        known = f"CASE WHEN vector_ivf_known({generation}) THEN NULL ELSE (SELECT centroids FROM {table}) END"
        return f"{generation}, {known}"

    def assigned(self, number: str, vector: str, source: str, has_place: str) -> str:
        """Return the rows of ``source`` by lists, as JSON, in SQL."""
        return (
            f"(SELECT vector_ivf_assign({number}, {vector}, '{self._index.space}', {self._centroids_if_unknown}) "
            f"FROM {source} WHERE {has_place})"
        )

    def rows_of_lists(self, lists: str) -> str:
        """Return the query of the vec0 rowids in lists, which are rows of a query."""
        chunks, rowids = self._name("_chunks"), self._name("_rowids")
        return (
            f"SELECT {rowids}.rowid FROM {self._prefix}{chunks} CROSS JOIN {self._prefix}{rowids} "
            f"ON {rowids}.chunk_id = {chunks}.chunk_id WHERE {chunks}.partition00 IN ({lists})"
        )
