"""``sqla-vector model``: another model for a column, while searches go on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from sqla_vector.cli.bar import shown_progress
from sqla_vector.cli.failure import ExitCode, Failed
from sqla_vector.cli.output import Output, counted
from sqla_vector.cli.running import AppOption, JsonOption, Running, TracebackOption, YesOption, running
from sqla_vector.tracking import Upgrade, UpgradeEstimate, UpgradeStatus

__all__ = ["register"]

ColumnArgument = Annotated[str, typer.Argument(metavar="CLASS.COLUMN", help="The embedded column: Article.embedding.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, max=10_000, help="Rows that are embedded together.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds an embedder has for a call; 0 waits for ever.")
]
LockOption = Annotated[
    float,
    typer.Option("--lock-wait", min=0.001, max=3600, help="Seconds to wait for those who are writing, at each try."),
]


def register(program: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Change the model of a column, while searches go on."
    )
    group.command("upgrade")(_upgrade)
    group.command("status")(_status)
    group.command("cutover")(_cutover)
    group.command("rollback")(_rollback)
    group.command("finish")(_finish)
    program.add_typer(group, name="model")


def _upgrade(
    column: ColumnArgument,
    app: AppOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count rows, tokens and cost.")] = False,
    batch_size: BatchOption = 256,
    timeout: TimeoutOption = 120.0,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="For the cost: of a million tokens, in any currency.")
    ] = None,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Make the vectors of the new model beside the column; begins, or goes on.

    The new model is the last one of the application's Versions().  Searches stay on the old one until the cutover.
    Counts the rows first, and asks.  May be stopped at any time (Ctrl-C finishes the batch in hand) and run again.
    Ends with 1 if rows were refused or edited meanwhile, with 130 if it was stopped.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        output = command.output
        options = {"batch_size": batch_size, "timeout": timeout or None}
        if dry_run or not is_agreed:
            with shown_progress(output, "counting") as on_progress:
                counting = _made(command, column, on_progress=on_progress, **options)
                estimate: UpgradeEstimate = _call(command, counting, "estimate")
            cost = None if price is None else estimate.tokens * price / 1_000_000
            if dry_run:
                output.result({**asdict(estimate), "cost": cost})
                output.line(f"{column}: {_todo(estimate, cost)}")
                return
            if estimate.left:
                output.confirm(f"{estimate.column}: {_todo(estimate, cost)}.", is_agreed=is_agreed)
        with shown_progress(output, "embedding") as on_progress:
            filling = _made(command, column, on_progress=on_progress, **options)
            status: UpgradeStatus = _call(command, filling, "fill", signals=True)
        _tell(output, status, _filled(status))
    if status.is_stopped:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not status.is_ready:
        raise typer.Exit(ExitCode.FOUND)


def _status(
    column: ColumnArgument,
    app: AppOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Show how far a change of model is, by the texts that the rows have now.

    Ends with 0 if all is ready for the cutover, or the column has the new model; else with 1.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        status: UpgradeStatus = _call(command, _made(command, column), "status")
        command.output.result(_as_dict(status))
        kinds = ("rows", "ready", "missing", "stale", "failed", "kept")
        row = (status.column, status.state, status.old, status.new, status.active)
        headers = ("column", "state", "old", "new", "active", *kinds)
        command.output.table(headers, [(*row, *(getattr(status, kind) for kind in kinds))])
        if not status.is_in_force and (status.new != status.wanted or status.state == "rolled back"):
            command.output.line(
                f"{status.column}: {status.wanted} is to follow; sqla-vector model upgrade {status.column} begins it"
            )
        _tell_reasons(command.output, status)
    if not status.is_ready and not status.is_in_force:
        raise typer.Exit(ExitCode.FOUND)


def _cutover(
    column: ColumnArgument,
    app: AppOption = None,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Rows that the new model refuses lose their vector.")
    ] = False,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Embed first what is left, instead of refusing.")
    ] = False,
    batch_size: BatchOption = 256,
    timeout: TimeoutOption = 120.0,
    lock_wait: LockOption = 5.0,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Put the new vectors into the column, in one transaction; the old ones are kept beside it.

    Asks first.  Ends with 1, and changes nothing, while rows are left or refused by the new model.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        options = {"batch_size": batch_size, "timeout": timeout or None, "lock_wait": lock_wait}
        upgrade = _made(command, column, **options)
        status: UpgradeStatus = _call(command, upgrade, "status")
        if not status.is_in_force:
            _check_ready(status, skip_failed, catch_up)
            without = f", and {counted(status.failed, 'row', 'rows')} will have none" if status.failed else ""
            command.output.confirm(
                f"{status.column} will have the vectors of {status.new} in place of those of {status.old}{without}.",
                is_agreed=is_agreed,
            )
            status = _call(command, upgrade, "cutover", skip_failed=skip_failed)
        kept = f", {counted(status.kept, 'vector', 'vectors')} of {status.old} beside it" if status.kept else ""
        _tell(command.output, status, f"{status.column}: has the vectors of {status.active}{kept}")


def _check_ready(status: UpgradeStatus, skip_failed: bool, catch_up: bool) -> None:
    if status.state != "filling" or status.new != status.wanted:
        raise Failed(
            f"{status.column} cannot be cut over to {status.wanted}, whose vectors were not made; begin with "
            f"sqla-vector model upgrade {status.column}"
        )
    if status.left and not catch_up:
        raise Failed(
            f"{status.column}: {status.left:,} of {status.rows:,} rows have no vector of their text by {status.new}; "
            f"go on with sqla-vector model upgrade {status.column}, or give --catch-up to embed them first",
            ExitCode.FOUND,
        )
    if status.failed and not skip_failed:
        listed = "; ".join(f"{key}: {reason}" for key, reason in status.reasons.items())
        raise Failed(
            f"{status.column}: {counted(status.failed, 'row', 'rows')} cannot be embedded by {status.new}; correct "
            f"them and run sqla-vector model upgrade {status.column}, or give --skip-failed, which leaves them without "
            f"a vector: {listed}",
            ExitCode.FOUND,
        )


def _rollback(
    column: ColumnArgument,
    app: AppOption = None,
    lock_wait: LockOption = 5.0,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Go back to the old model: drop the new vectors before the cutover, exchange them after it.

    Asks first.  Rows that were edited or added after the cutover are left to a worker.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        upgrade = _made(command, column, lock_wait=lock_wait)
        if not is_agreed:
            status: UpgradeStatus = _call(command, upgrade, "status")
            if status.state == "filling":
                question = f"{counted(status.kept, 'vector', 'vectors')} of {status.new} will be dropped."
                command.output.confirm(f"{status.column}: {question}", is_agreed=False)
            elif status.state == "cut over":
                question = f"will have the vectors of {status.old} again, and those of {status.new} will be dropped."
                command.output.confirm(f"{status.column} {question}", is_agreed=False)
        status = _call(command, upgrade, "rollback")
        _tell(command.output, status, f"{status.column}: rolled back, has the vectors of {status.active}")


def _finish(
    column: ColumnArgument,
    app: AppOption = None,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Drop the old vectors after the cutover; there is no rollback after that.  Asks first."""
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        upgrade = _made(command, column)
        if not is_agreed:
            status: UpgradeStatus = _call(command, upgrade, "status")
            if status.state == "cut over":
                kept = counted(status.kept, "vector", "vectors")
                command.output.confirm(
                    f"{status.column}: {kept} of {status.old} will be dropped, and there will be no way back.",
                    is_agreed=False,
                )
        status = _call(command, upgrade, "finish")
        _tell(command.output, status, f"{status.column}: finished, has the vectors of {status.active}")


def _made(command: Running, column: str, **options: Any) -> Upgrade:
    command.application.connect()
    return Upgrade(command.application.sessions, command.application.attribute(column), **options)


def _call(command: Running, upgrade: Upgrade, name: str, **options: Any) -> Any:
    """Call a method, or its asynchronous twin."""
    if command.application.is_async:
        return command.application.wait(getattr(upgrade, f"a{name}")(**options))
    return getattr(upgrade, name)(**options)


def _todo(estimate: UpgradeEstimate, cost: float | None) -> str:
    said = "" if cost is None else f", cost about {cost:,.2f}"
    return (
        f"{estimate.left:,} of {counted(estimate.rows, 'row', 'rows')} to embed by {estimate.model}, "
        f"about {estimate.tokens:,} tokens{said}"
    )


def _filled(status: UpgradeStatus) -> str:
    if status.is_stopped:
        made = counted(status.kept, "vector", "vectors")
        return f"{status.column}: stopped before the end, {made} by {status.new} made so far; run it again to go on"
    left = f", {status.left:,} edited meanwhile" if status.left else ""
    failed = f", {status.failed:,} refused" if status.failed else ""
    return f"{status.column}: {status.ready:,} of {status.rows:,} rows ready for {status.new}{left}{failed}"


def _tell(output: Output, status: UpgradeStatus, said: str) -> None:
    output.result(_as_dict(status))
    output.line(said)
    _tell_reasons(output, status)


def _tell_reasons(output: Output, status: UpgradeStatus) -> None:
    for key, reason in status.reasons.items():
        output.line(f"{status.column}: {key} cannot be embedded by {status.new}: {reason}")


def _as_dict(status: UpgradeStatus) -> dict[str, Any]:
    return {**asdict(status), "left": status.left, "is_ready": status.is_ready, "is_in_force": status.is_in_force}
