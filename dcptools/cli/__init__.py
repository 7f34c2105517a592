"""The command line: ``commands`` with ``options``, what they print (``output``), and how they end (``running``)."""

from __future__ import annotations

from dcptools.cli.commands import convert_command, main_group
from dcptools.cli.running import run

__all__ = ["convert_command", "main_group", "run"]
