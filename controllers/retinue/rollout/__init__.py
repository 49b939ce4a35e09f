"""Which instances come and which go: scale and rolling replacement by whole instances."""
