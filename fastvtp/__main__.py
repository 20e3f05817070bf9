"""`python -m fastvtp` is the `fastvtp` command."""

from fastvtp.cli import main

main()
