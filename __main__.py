"""`python -m viker` is the `viker` command."""

from .cli import main

main()
