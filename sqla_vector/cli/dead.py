"""``sqla-vector dead``: rows that failed for the last time."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.durations import seconds_of
from sqla_vector.cli.failure import Failed
from sqla_vector.cli.output import counted, duration
from sqla_vector.cli.running import AppOption, JsonOption, Running, TracebackOption, YesOption, running
from sqla_vector.elasticsearch.names import channel_of, check_index_name
from sqla_vector.exc import InvalidIdentifier
from sqla_vector.tracking.dead import Selection, count_dead, drop, list_dead, replay
from sqla_vector.tracking.outbox import CHANNEL

__all__ = ["register"]

EntityOption = Annotated[
    str | None, typer.Option("--entity", metavar="TABLE", help="Only rows of a table or class, such as article.")
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="Only the row of this primary key: 7, or a JSON array such as [7, 2].")
]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only those whose reason has this in it.")]
OlderOption = Annotated[
    float | None,
    typer.Option("--older-than", parser=seconds_of, metavar="TIME", help="Only those dead for so long: 90s, 2h, 7d."),
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]
IndexOption = Annotated[
    str | None,
    typer.Option("--index", metavar="NAME", help="Those of an index of Elasticsearch, in place of those of vectors."),
]
LimitOption = Annotated[int, typer.Option(min=1, max=10**9, help="How many at most.")]


def register(program: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at dead entries, try again, or drop.")
    group.command("list")(_list)
    group.command("replay")(_replay)
    group.command("drop")(_drop)
    program.add_typer(group, name="dead")


def _list(
    app: AppOption = None,
    entity: EntityOption = None,
    key: KeyOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    index: IndexOption = None,
    limit: LimitOption = 1000,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """List dead entries with their reasons, those that died last first."""
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        application, output = command.application, command.output
        selection = _selection(application, entity, key, reason, older_than, index)
        found, number = application.call(
            lambda c: (list_dead(c, application.outbox, selection, limit), count_dead(c, application.outbox, selection))
        )
        output.result({"count": number, "entries": [entry.as_dict() for entry in found]})
        if found:
            rows = [(one.entity, one.row_key, one.attempts, duration(one.age), one.reason or "") for one in found]
            output.table(("entity", "key", "attempts", "dead for", "reason"), rows)
        if number > len(found):
            output.message(f"{number - len(found):,} more; --limit shows them")
        elif not found:
            output.message("no dead entries")
        if index is None:
            for other in application.indexes:
                there = application.call(partial(count_dead, outbox=other.outbox, selection=_all_of(other.channel)))
                if there:
                    output.message(f"{counted(there, 'dead entry', 'dead entries')} of an index: --index {other.name}")


def _replay(
    app: AppOption = None,
    entity: EntityOption = None,
    key: KeyOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    index: IndexOption = None,
    everything: AllOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Have dead entries tried again, at once and as if for the first time."""
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        application, output = command.application, command.output
        selection = _selection(application, entity, key, reason, older_than, index)
        _check_meant(selection, everything)
        number = application.call(lambda c: replay(c, application.outbox, selection), to_write=True)
        output.result({"replayed": number})
        output.line(f"{counted(number, 'entry is', 'entries are')} tried again")


def _drop(
    app: AppOption = None,
    entity: EntityOption = None,
    key: KeyOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    index: IndexOption = None,
    everything: AllOption = False,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Delete dead entries; their rows stay without a current vector or document, which only a check reports then."""
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        application, output = command.application, command.output
        selection = _selection(application, entity, key, reason, older_than, index)
        _check_meant(selection, everything)
        number = _drop_agreed(command, selection, is_agreed)
        output.result({"dropped": number})
        output.line(f"{counted(number, 'entry was', 'entries were')} dropped")


def _drop_agreed(command: Running, selection: Selection, is_agreed: bool) -> int:
    application = command.application
    number = application.call(lambda c: count_dead(c, application.outbox, selection))
    if number == 0:
        return 0
    command.output.confirm(f"{counted(number, 'dead entry', 'dead entries')} will be deleted.", is_agreed=is_agreed)
    return application.call(lambda c: drop(c, application.outbox, selection), to_write=True)


def _check_meant(selection: Selection, everything: bool) -> None:
    if selection.is_everything and not everything:
        raise Failed("say which entries are meant, by --entity, --key, --reason or --older-than; or give --all")
    if everything and not selection.is_everything:
        raise Failed("--all means all dead entries; leave it out, or leave the others out")


def _all_of(channel: str) -> Selection:
    return Selection(channel=channel)


def _selection(
    application: Application,
    entity: str | None,
    key: str | None,
    reason: str | None,
    older_than: float | None,
    index: str | None,
) -> Selection:
    application.connect()
    channel = CHANNEL if index is None else _channel(application, index)
    if entity is not None:
        entity = _entity(application, entity, channel)
    return Selection(entity, None if key is None else _row_keys(key), reason, older_than, channel)


def _channel(application: Application, name: str) -> str:
    """Return the channel of an index; it may be one that the application has no longer."""
    try:
        channel = channel_of(check_index_name(name))
    except InvalidIdentifier:
        channel = None
    known = [index.name for index in application.indexes]
    if channel is None or (
        name not in known and not application.call(lambda c: count_dead(c, application.outbox, _all_of(channel)))
    ):
        raise Failed(f'there is no index "{name}", and no dead entry of one; there are: {", ".join(known) or "none"}')
    return channel


def _entity(application: Application, name: str, channel: str) -> str:
    """Return a table as the outbox names it; it may be one that the application has no longer."""
    target = application.target(name)
    if target is not None:
        return target.entity
    if application.call(lambda c: count_dead(c, application.outbox, Selection(entity=name, channel=channel))):
        return name
    have = ", ".join(dict.fromkeys(target.entity for target in application.all_targets))
    raise Failed(f'there is no table "{name}" with embedded columns, and no dead entry of one; there are: {have}')


def _row_keys(written: str) -> list[str]:
    """Return what the outbox may have for a key: 7 is a number, or a text."""
    try:
        value = json.loads(written)
    except ValueError:
        value = written
    if isinstance(value, list):
        return [_encoded(value)]
    return list(dict.fromkeys((_encoded([value]), _encoded([written]))))


def _encoded(values: list[object]) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)
