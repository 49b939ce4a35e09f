"""Everything that stands in for hardware and users: node plugin, simulated engines, replay, loopback control plane."""
