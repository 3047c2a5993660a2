"""The command line, a file a verb. Whatever is heavy is imported inside the verbs, so that --help is quick."""

from djepa_mm.cli.app import app, main

__all__ = ["app", "main"]
