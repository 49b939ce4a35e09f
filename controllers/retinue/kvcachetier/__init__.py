"""KVCacheTier: server pods for the tiers that run servers, and what every tier holds."""
