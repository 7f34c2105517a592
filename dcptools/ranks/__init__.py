"""One run in many processes that ``torchrun`` started, on one machine or many.

Rank 0 is the command line as always; the others do what it says. ``launching`` joins them by ``torch.distributed``,
``pulse`` lets each know how far all are, ``team`` gives every rank its part of a piece of work and gathers what came
out, and ``filling`` and ``checking`` are the work that is given out this way; ``share`` cuts it.
"""

from __future__ import annotations

from dcptools.ranks.checking import SharedChecks
from dcptools.ranks.filling import SharedEngine
from dcptools.ranks.launching import together
from dcptools.ranks.share import shares
from dcptools.ranks.team import Team

__all__ = ["SharedChecks", "SharedEngine", "Team", "shares", "together"]
