"""The session-aware, OpenAI-compatible front door of an agent inference cluster."""
