"""The command ``monitor``. It finds runs by their folders and speaks HTTP to them; only ``demo`` imports torch."""

from monitor.cli._main import main

__all__ = ["main"]
