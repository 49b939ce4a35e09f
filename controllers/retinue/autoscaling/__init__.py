"""The autoscaler's pure half: what is measured, how it is judged, and one decision for all pools and tiers together."""
