"""The demo: the whole product on this machine, agent sessions replayed against it, and a report of what happened."""
