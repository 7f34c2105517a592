"""``verify``: whether a model on the disk is what a checkpoint gives, read in another way than it was written.

``weights`` compares values bit for bit, on the model's side through ``library``; ``files`` looks after headers, index
and the files beside the weights. ``receipt`` says what was written, with ``checksums``, and ``copies`` compares with
that. ``checking`` puts it together; ``values`` is what came out. ``order`` tells a model from a checkpoint,
``complete`` one that need not be written again.
"""

from __future__ import annotations

from dcptools.verifying.checking import verify, verify_written
from dcptools.verifying.checksums import checksums
from dcptools.verifying.complete import write_or_find
from dcptools.verifying.order import told_apart
from dcptools.verifying.receipt import check_receipt_path, receipt_of, write_receipt
from dcptools.verifying.values import Verification, VerifiedWeight
from dcptools.verifying.weights import Difference, compare_values

__all__ = [
    "Difference",
    "Verification",
    "VerifiedWeight",
    "check_receipt_path",
    "checksums",
    "compare_values",
    "receipt_of",
    "told_apart",
    "verify",
    "verify_written",
    "write_or_find",
    "write_receipt",
]
