"""`python -m pylm`, for torchrun."""

from pylm.cli import main

main()
