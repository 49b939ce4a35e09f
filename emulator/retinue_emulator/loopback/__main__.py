"""`python -m retinue_emulator.loopback`: the loopback commands on their own."""

from .cli import app

app(prog_name="retinue-loopback")
