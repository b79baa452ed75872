"""`python -m intaglio`: the command line, where the script is not on the path."""

from intaglio.cli.main import run

run()
