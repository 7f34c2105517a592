"""The last stage: ``write`` fills the planned files with values, and publishes them when they are complete.

``target`` and ``lock`` look after the output directory, ``staged``, ``journal`` and ``sums`` after what is finished;
``cut`` says what is read, cast and written together, and ``engine`` does it; ``publishing`` and ``swap`` give the files
their names, all of them or none.
"""

from __future__ import annotations

from dcptools._parallel import Progress
from dcptools.writer.cut import Sizes
from dcptools.writer.engine import Engine, Finish, OutputEngine
from dcptools.writer.publishing import refuse_changes
from dcptools.writer.report import Report, nothing_written
from dcptools.writer.tally import Noticed
from dcptools.writer.target import check_target, default_save_dir, free_bytes
from dcptools.writer.writing import write

__all__ = [
    "Engine",
    "Finish",
    "Noticed",
    "OutputEngine",
    "Progress",
    "Report",
    "Sizes",
    "check_target",
    "default_save_dir",
    "free_bytes",
    "nothing_written",
    "refuse_changes",
    "write",
]
