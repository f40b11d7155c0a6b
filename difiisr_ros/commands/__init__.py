"""Subcommands of ``difiisr`` that have a parser of their own."""
