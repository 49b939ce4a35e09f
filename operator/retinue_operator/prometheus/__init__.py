"""The shell's view of Prometheus: an HTTP client, and the poll that turns queries into samples with their age."""
