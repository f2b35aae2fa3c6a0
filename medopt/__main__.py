"""`python -m medopt`, and `torchrun -m medopt`: the command line."""

from medopt.cli import main

main()
