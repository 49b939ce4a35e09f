"""Replay: recorded and generated agent sessions, driven against a gateway the way a harness would drive it."""
