"""Compares documents with rows: what an index has and what it should have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sqla_vector.elasticsearch.documents import Document
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.names import META_FIELD
from sqla_vector.elasticsearch.report import CheckReport, Difference, Kind
from sqla_vector.elasticsearch.rows import Rows
from sqla_vector.elasticsearch.sending import Sender, check_not_restored
from sqla_vector.elasticsearch.settings import EXCLUDE_VECTORS
from sqla_vector.elasticsearch.specs import DenseVectorSpec, FieldSpec
from sqla_vector.elasticsearch.sweep import check_whole, key_or_none, read_all
from sqla_vector.elasticsearch.writing import Crew
from sqla_vector.tracking.entries import existing
from sqla_vector.tracking.outbox import DEAD, PENDING
from sqla_vector.tracking.progress import Meter
from sqla_vector.tracking.steps import Pause, Steps
from sqla_vector.tracking.targets import Key

__all__ = ["Comparison", "fields_that_differ"]

_COLUMNS: Final = (f"{META_FIELD}.hash", f"{META_FIELD}.key")
_ROUNDS: Final = 6
"""How often a document that somebody is changing is looked at."""
_NEAR: Final = 1e-5
"""Of the largest element: how far a vector may be from the row's that the server has put together again."""


def fields_that_differ(
    index: SearchIndex, document: Document, source: object, *, fast: bool = False, is_near: bool = False
) -> tuple[str, ...]:
    """Return the names of fields in which a document is not what its row is.

    Args:
        index: what is declared.
        document: the row's.
        source: the ``_source`` of the stored one.
        fast: look only at what the stored one says of itself.
        is_near: vectors are not in ``_source``, and put together from what is indexed.
    """
    source = source if isinstance(source, Mapping) else {}
    about = source.get(META_FIELD)
    about = about if isinstance(about, Mapping) else {}
    wanted = document.body[META_FIELD]
    found = []
    if not fast:
        for name in sorted((source.keys() | document.body.keys()) - {META_FIELD}):
            both = name in source and name in document.body
            if not (both and _is_same(index.fields.get(name), document.body[name], source[name], is_near=is_near)):
                found.append(name)
    return (
        *found,
        *(name for name in _COLUMNS if about.get(name.rpartition(".")[2]) != wanted[name.rpartition(".")[2]]),
    )


def _is_same(spec: FieldSpec | None, ours: Any, theirs: Any, *, is_near: bool) -> bool:
    if spec is None:
        return False
    try:
        if is_near and isinstance(spec, DenseVectorSpec) and spec.element_type == "float":
            vector = np.asarray(theirs, np.float32)
            return vector.shape == ours.shape and bool(np.abs(vector - ours).max() <= _NEAR * np.abs(ours).max())
        return bool(spec.canonical(ours) == spec.canonical(theirs))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False  # it is something that this package never writes


@dataclass
class _Page:
    """What was found of rows or documents that are looked at together."""

    rows: int = 0
    documents: int = 0
    differences: list[Difference] = field(default_factory=list)
    pending: int = 0
    dead: int = 0


@dataclass
class _Look:
    """A document, a row or both, and whether somebody found it missing before."""

    id: str | None
    key: Key | None
    was_missing: bool = False


@dataclass
class Comparison:
    """Compares all rows with their documents, and then all documents with their rows.

    While rows and documents change, a difference may be one of two moments.  So what differs is looked at again: the
    document is read, then the row, then its entries, and then the document's version.  If no entry waits, all changes
    of the row have been written to the index before; and if the version has not changed, what was read is what that
    left.  Then it is a difference.

    Args:
        rows: the database's side.
        sender: the index's side.
        alias: of the index.
        report: is filled.
        fast: compare hashes, not contents.
        examples: how many differences are kept.
        page: rows at a time.
        workers: pages at a time.
        repair: is given the differences of each page.
        meter: counts what was looked at.
        is_stopping: tells whether to stop.
        stop: stops everything.
    """

    rows: Rows
    sender: Sender
    alias: str
    report: CheckReport
    fast: bool
    examples: int
    page: int
    workers: int
    repair: Callable[[list[Difference]], Steps[None]] | None
    meter: Meter
    is_stopping: Callable[[], bool]
    stop: Callable[[], object]
    _drawn: int = 0

    def run(self) -> Steps[None]:
        """Compare everything, unless told to stop.

        Raises:
            DatabaseRestored: a document has a version that the database has not come to.
            IndexMissing: there is no index.
            SearchError: a shard did not answer, so that nothing can be said.
        """
        yield from self._in_pages(self._all_rows)
        if not self.is_stopping():
            yield from self._in_pages(self._all_documents)
        self.report.is_complete = not self.is_stopping()

    def _in_pages(self, orders: Callable[[Crew[_Page]], Steps[None]]) -> Steps[None]:
        crew = Crew(self.workers, self._settle, self.stop)
        yield from crew.run(lambda: orders(crew))

    @property
    def _index(self) -> SearchIndex:
        return self.rows.index

    def _insist(self, method: str, **arguments: Any) -> Steps[Any]:
        return (yield from self.rows.patience.insist(lambda: self.sender.ask(method, **arguments)))

    # All rows.

    def _all_rows(self, crew: Crew[_Page]) -> Steps[None]:
        after: Key | None = None
        while not self.is_stopping() and (keys := (yield from self.rows.after(after, self.page))):
            after = keys[-1]
            yield from crew.add(self._compare(keys))

    def _compare(self, keys: Sequence[Key]) -> Steps[_Page]:
        looks = [_Look(self.rows.id_of(key), key) for key in keys]
        if self.fast:
            # What is there is compared when all documents are read.
            found = yield from self._get([look.id for look in looks if look.id is not None], source=False)
            suspects = [look for look in looks if look.id not in found]
        else:
            stored = yield from self._stored(looks)
            documents = yield from self.rows.documents(keys)
            suspects = [
                look
                for look in looks
                if look.key in documents and self._verdict(documents[look.key], self._of(look, stored))
            ]
        page = _Page(rows=len(keys))
        # A row that is deleted meanwhile is found by its document.
        yield from self._judge(page, suspects, ("missing",) if self.fast else ("missing", "stale"))
        return page

    # All documents.

    def _all_documents(self, crew: Crew[_Page]) -> Steps[None]:
        def order(hits: Sequence[Any]) -> Steps[None]:
            yield from crew.add(self._compare_back(hits))

        # By what is kept in columns: of _source the server would have to read all to give a part of it.
        options = {"docvalue_fields": list(_COLUMNS)} if self.fast else None
        yield from read_all(self._insist, self.alias, order, page=self.page, options=options)

    def _compare_back(self, hits: Sequence[Any]) -> Steps[_Page]:
        yield from self._check_versions(hits)
        number, routed = len(hits), [hit for hit in hits if "_routing" in hit]
        hits = [hit for hit in hits if "_routing" not in hit]
        looks = [_Look(hit["_id"], key_or_none(self._index, hit["_id"])) for hit in hits]
        keys = [look.key for look in looks if look.key is not None]
        page = _Page(documents=number)
        if self.fast:
            documents = yield from self.rows.documents(keys)
            suspects = [
                look
                for look, hit in zip(looks, hits, strict=True)
                if look.key is None or look.key not in documents or not _has_hash(documents[look.key], hit)
            ]
        else:
            there = yield from self.rows.read(lambda connection: existing(connection, self._index.target, keys))
            suspects = [look for look in looks if look.key is None or look.key not in there]
        # What has a row was compared with it already.
        yield from self._judge(page, suspects, ("extra", "stale") if self.fast else ("extra",))
        # No sync writes to a routing, nor finds what is there: it may be a second document of a row.
        for hit in routed:
            key = key_or_none(self._index, hit["_id"])
            row_key = None if key is None else self._index.target.encode(key)
            page.differences.append(Difference("extra", hit["_id"], row_key, routing=hit["_routing"]))
        return page

    def _settle(self, page: _Page) -> Steps[None]:
        self.report.rows += page.rows
        self.report.documents += page.documents
        self.report.pending += page.pending
        self.report.dead += page.dead
        self.report.add(page.differences, self.examples)
        if self.repair is not None and page.differences:
            yield from self.repair(page.differences)
        yield from self.meter.advance(page.rows + page.documents)

    # What differs.

    def _judge(self, page: _Page, suspects: Sequence[_Look], kinds: Sequence[Kind]) -> Steps[None]:
        """Look at documents again, and note those that differ in one of some ways."""
        rest = list(suspects)
        for number in range(_ROUNDS):
            if not rest or (number and (yield Pause(0.02 * 2.0**number))):
                break
            # In this order; see the class.
            stored = yield from self._stored(rest, anew=True)
            keys = [look.key for look in rest if look.key is not None]
            documents = yield from self.rows.documents(keys)
            states = yield from self.rows.states(keys)
            ids = [look.id for look in rest if look.id is not None]
            again = yield from self._get(ids, source=False)
            rest = [
                look
                for look in rest
                if not self._is_settled(page, look, documents, states, self._of(look, stored), self._of(look, again))
            ]
        # They change all the time, so that entries come all the time.
        page.pending += len(rest)
        page.differences = [one for one in page.differences if one.kind in kinds]

    def _is_settled(
        self,
        page: _Page,
        look: _Look,
        documents: Mapping[Key, Document],
        states: Mapping[Key, str],
        stored: Any,
        again: Any,
    ) -> bool:
        document = None if look.key is None else documents.get(look.key)
        verdict = self._verdict(document, stored)
        if verdict is None:
            return True
        state = None if look.key is None else states.get(look.key)
        if state == PENDING:
            page.pending += 1
            return True
        if _version(stored) != _version(again):
            return False
        kind, what = verdict
        if kind == "missing" and not look.was_missing:
            # What is not there has no version, so that it may have been there in between.
            look.was_missing = True
            return False
        if state == DEAD:
            page.dead += 1
            return True
        row_key = None if look.key is None else self._index.target.encode(look.key)
        page.differences.append(Difference(kind, look.id or row_key or "", row_key, what))
        return True

    def _verdict(self, document: Document | None, stored: Any) -> tuple[Kind, tuple[str, ...]] | None:
        if document is None:
            return None if stored is None else ("extra", ())
        why = () if document.error is None else (document.error,)
        if stored is None:
            return "missing", why
        what = why or fields_that_differ(
            self._index, document, stored.get("_source"), fast=self.fast, is_near=self._has_no_vectors
        )
        return ("stale", what) if what else None

    # Documents.

    @property
    def _has_no_vectors(self) -> bool:
        """Whether vectors are left out of ``_source``."""
        excluded = self._index.settings().get(EXCLUDE_VECTORS) not in (False, "false")
        return excluded and not self.fast and bool(self._index.vectors)

    @staticmethod
    def _of(look: _Look, hits: Mapping[str, Any]) -> Any:
        return None if look.id is None else hits.get(look.id)

    def _stored(self, looks: Sequence[_Look], *, anew: bool = False) -> Steps[dict[str, Any]]:
        ids = [look.id for look in looks if look.id is not None]
        if not self._has_no_vectors or not ids:
            return (yield from self._get(ids, source=[META_FIELD] if self.fast else True))
        if anew or not self._drawn:
            yield from self._insist("indices.refresh", index=self.alias)
        answer = yield from self._insist(
            "search",
            index=self.alias,
            query={"ids": {"values": ids}},
            size=len(ids),
            version=True,
            source={"exclude_vectors": False},
        )
        check_whole(answer, self.alias)
        hits = {hit["_id"]: hit for hit in answer["hits"]["hits"]}
        yield from self._check_versions(hits.values())
        return hits

    def _get(self, ids: Sequence[str], source: Any) -> Steps[dict[str, Any]]:
        hits: dict[str, Any] = yield from self.rows.patience.insist(
            lambda: self.sender.documents(ids, self.alias, source)
        )
        yield from self._check_versions(hits.values())
        return hits

    def _check_versions(self, hits: Any) -> Steps[None]:
        newest = max((hit["_version"] for hit in hits), default=0)
        if newest > self._drawn:
            # Whoever writes has drawn the number before, so that this one is larger.
            self._drawn = yield from self.rows.draw()
            check_not_restored(newest, self._drawn, self._index)


def _has_hash(document: Document, hit: Any) -> bool:
    """Tell whether a document says that it has the contents of the row's, by its columns."""
    if document.error is not None:
        return False
    fields, about = hit.get("fields") or {}, document.body[META_FIELD]
    return all(fields.get(name) == [about[name.rpartition(".")[2]]] for name in _COLUMNS)


def _version(hit: Any) -> int | None:
    return None if hit is None else int(hit["_version"])
