"""Programs that measure Retinue against named yardsticks, one command each: `python -m bench.NAME --help`."""
