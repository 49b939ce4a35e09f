"""What prefill and decode pools share: instances of pods, their placement, restart, drain and rollout."""
