"""Models and device presets as data, and their loader."""
