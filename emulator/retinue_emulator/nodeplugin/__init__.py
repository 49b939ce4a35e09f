"""The node plugin: emulated nodes on a real API server, whose pods run inside this process (API mode)."""

from .plugin import NodePlugin, PluginSettings

__all__ = ["NodePlugin", "PluginSettings"]
