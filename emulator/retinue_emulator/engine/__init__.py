"""The simulated engine and the simulated tier server: real HTTP, real metric names, modelled time."""
