"""`python -m retinue_operator` is `retinue-operator`."""

from retinue_operator.cli import main

main()
