"""The command line: ``sqla-vector``."""
