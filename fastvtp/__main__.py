"""`python -m fastvtp` is the `fastvtp` command."""

from fastvtp.cli.main import main

main()
