"""The entry point of ``sqla-vector``: says what is missing where the packages of the command line are."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the process was given, and exit with its code."""
    try:
        import rich
        import typer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write(f"sqla-vector needs the package {error.name}; run: pip install 'sqla-vector[cli]'\n")
        sys.exit(2)
    del rich, typer
    from sqla_vector.cli.program import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
