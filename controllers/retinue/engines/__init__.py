"""One module per engine: how it is launched, what its flags and metrics are called."""
