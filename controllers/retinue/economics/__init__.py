"""What serving costs: time (a compact performance model) and money."""
