"""Runs the gateway as `python -m retinue_gateway`."""

from retinue_gateway.cli import main

main()
