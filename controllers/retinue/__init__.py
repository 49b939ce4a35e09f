"""The functional core of Retinue: plain values in, plain values out; no I/O, no clock, no randomness."""
