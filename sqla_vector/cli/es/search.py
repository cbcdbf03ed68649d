"""``sqla-vector es search``: a look at what an index finds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import typer
from sqlalchemy.orm import Session

from sqla_vector.cli.application import Application
from sqla_vector.cli.es.server import ClientOption, Server, working
from sqla_vector.cli.failure import ExitCode, Failed
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.elasticsearch import DenseVectorSpec, Knn, Searcher, SearchHit, SearchIndex, SearchPage
from sqla_vector.embedding import aembed, embed, embedded_columns
from sqla_vector.tracking import active_embedder

__all__ = ["register"]

_SHOWN = 60
"""Characters of a value."""

By = Literal["vector", "text", "both"]


@dataclass(frozen=True)
class _Wanted:
    """What is searched for."""

    query: str | None
    like: str | None
    by: By
    field: str | None
    limit: int


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("search")(_search)


def _search(
    name: Annotated[str, typer.Argument(metavar="INDEX", help="The index.")],
    query: Annotated[str | None, typer.Argument(help="What is searched for; or give --like.")] = None,
    app: AppOption = None,
    client: ClientOption = None,
    like: Annotated[
        str | None, typer.Option(metavar="KEY", help="Search for what is near the row of this primary key.")
    ] = None,
    by: Annotated[By | None, typer.Option(help="By the query's vector, by its words, or by both.")] = None,
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field of vectors, where there are several.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, max=1000, help="How many rows.")] = 10,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Search an index, for a look.

    The query is embedded as the column's texts are, and searched by its words too if the index has text fields.
    Ends with 1 if nothing is found.
    """
    with working(app, client, [name], as_json=as_json, show_traceback=show_traceback) as (command, server, (index,)):
        command.application.connect()
        wanted = _checked(index, _Wanted(query, like, by or "both", field, limit), is_said=by is not None)
        page = _found(command.application, server, index, wanted)
        _tell(command.output, index, page)
    if not page:
        raise typer.Exit(ExitCode.FOUND)


def _checked(index: SearchIndex, wanted: _Wanted, *, is_said: bool) -> _Wanted:
    """Return what can be searched for.

    Raises:
        Failed: nothing can.
    """
    if (wanted.query is None) == (wanted.like is None):
        raise Failed("give what is searched for, or --like with the key of a row")
    if wanted.field is not None and wanted.field not in index.vectors:
        raise Failed(f'{index.name} has no field of vectors "{wanted.field}"; it has: {", ".join(index.vectors)}')
    own = {name: spec for name, spec in index.vectors.items() if not spec.relations}
    has_text = any(spec.kind == "text" for spec in index.fields.values())
    if wanted.like is not None:
        wanted = replace(wanted, by="vector")
    elif not is_said and not (has_text and own):
        wanted = replace(wanted, by="vector" if own else "text")
    if wanted.by == "text":
        return wanted
    field = wanted.field or next(iter(own), None)
    if field is None or field not in own:
        raise Failed(f"{index.name} has no vectors of the rows themselves; give --by text")
    return replace(wanted, field=field)


def _found(application: Application, server: Server, index: SearchIndex, wanted: _Wanted) -> SearchPage[Any]:
    searcher = Searcher(server.client, index)
    text = wanted.query if wanted.by != "vector" else None
    spec = None if wanted.field is None or wanted.by == "text" else index.vectors[wanted.field]
    if not application.is_async:
        with application.sessions() as session:
            knn = None
            if spec is not None:
                asked = _asked(session, index, spec, wanted)
                knn = Knn(spec.name, asked if wanted.query is None else embed(asked, [wanted.query])[0])
            return searcher.search(session, knn=knn, text=text, k=wanted.limit)

    async def search() -> SearchPage[Any]:
        async with application.sessions() as session:
            knn = None
            if spec is not None:
                asked = await session.run_sync(_asked, index, spec, wanted)
                knn = Knn(spec.name, asked if wanted.query is None else (await aembed(asked, [wanted.query]))[0])
            return await searcher.asearch(session, knn=knn, text=text, k=wanted.limit)

    return application.wait(search())


def _asked(session: Session, index: SearchIndex, spec: DenseVectorSpec, wanted: _Wanted) -> Any:
    """Return the embedder of a field's vectors, or the vector of the row that is named.

    Raises:
        Failed: there is no such row, or it has no vector; no embedder makes such vectors.
        InvalidOption: the vectors are by no embedder of this program.
    """
    if wanted.like is None:
        if spec.attribute.key not in {column.key for column in embedded_columns(index.mapper)}:
            raise Failed(
                f"no embedder makes the vectors of {index.name}'s {spec.name}, nor one of a query; give --by text, or "
                "--like with the key of a row"
            )
        return active_embedder(session, spec.attribute)
    try:
        key = index.key_of(wanted.like)
    except ValueError:
        raise Failed(f'no row of {index.entity} has the key "{wanted.like}"; write 7, or a JSON array') from None
    row = session.get(index.mapper.class_, key)
    if row is None:
        raise Failed(f"{index.entity} has no row {wanted.like}")
    vector = getattr(row, spec.attribute.key)
    if vector is None:
        raise Failed(f"the row {wanted.like} of {index.entity} has no vector in {spec.attribute.key} yet")
    return vector


def _tell(output: Output, index: SearchIndex, page: SearchPage[Any]) -> None:
    shown = [
        (name, spec.attribute.key)
        for name, spec in index.fields.items()
        if not spec.relations and spec.kind in ("text", "keyword")
    ]
    hits = [(hit, {name: vars(hit.entity).get(key) for name, key in shown}) for hit in page]
    output.result({"index": index.name, "hits": [_as_dict(index, *hit) for hit in hits], "dropped": list(page.dropped)})
    rows = [
        (
            hit.rank,
            index.document_id(hit.key),
            f"{hit.score:.4g}",
            None if hit.distance is None else f"{hit.distance:.4g}",
            *(_short(value) for value in values.values()),
        )
        for hit, values in hits
    ]
    if rows:
        output.table(("rank", "key", "score", "distance", *(name for name, _ in shown)), rows)
    else:
        output.message("nothing was found")
    if page.dropped:
        output.message(f"documents without a row: {', '.join(page.dropped)}")


def _as_dict(index: SearchIndex, hit: SearchHit[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "key": index.document_id(hit.key),
        "score": hit.score,
        "distance": hit.distance,
        "similarity": hit.similarity,
        "fields": {name: None if value is None else str(value) for name, value in values.items()},
    }


def _short(value: Any) -> str | None:
    if value is None:
        return None
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
