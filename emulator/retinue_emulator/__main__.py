"""`python -m retinue_emulator`: the same as the `retinue-emulator` script."""

from .cli import main

main()
