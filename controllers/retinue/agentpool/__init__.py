"""AgentPool: the pools and tiers of every role, and one decision that sizes them together."""
