"""dcptools: PyTorch distributed checkpoints (DCP) to HuggingFace models.

One straight line of values, each of which is the only argument that the next step needs::

    checkpoint = dcptools.read(load_dir)                 # what is in it, from the metadata alone
    mapping    = dcptools.preview(checkpoint)            # every output, every leftover, every finding
    plan       = dcptools.plan(mapping, shard_size=...)  # files, byte offsets, peak memory
    report     = dcptools.write(plan, save_dir)          # the model

``dcptools.inspect(path)`` is the DataFrame of keys; ``dcptools.convert(...)`` is the whole line.
"""

from dcptools import _start as _start  # first, for a Ctrl-C while the others are imported
from dcptools.checkpoint import Checkpoint, inspect, read
from dcptools.comparing import Comparison, diff
from dcptools.convert import convert
from dcptools.errors import DcptoolsError
from dcptools.findings import Finding
from dcptools.loading import load_model, load_state_dict
from dcptools.mapping import KeyMapping, preview
from dcptools.reviewing import review
from dcptools.shards import ShardPlan, plan
from dcptools.values import load_tensor, stats
from dcptools.verifying import Verification, verify
from dcptools.writer import Report, write

__all__ = [
    "Checkpoint",
    "Comparison",
    "DcptoolsError",
    "Finding",
    "KeyMapping",
    "Report",
    "ShardPlan",
    "Verification",
    "convert",
    "diff",
    "inspect",
    "load_model",
    "load_state_dict",
    "load_tensor",
    "plan",
    "preview",
    "read",
    "review",
    "stats",
    "verify",
    "write",
]
__version__ = "0.1.0"
