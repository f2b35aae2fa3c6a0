"""`python -m medopt`, and `torchrun -m medopt`: the command line."""

from medopt.cli.main import main

main()
