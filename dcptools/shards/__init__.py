"""The third stage: ``plan`` fixes every file of the result before a byte is written."""

from __future__ import annotations

from dcptools.shards.casts import DTYPES, SHORT_NAMES, parse_exceptions, written_dtypes
from dcptools.shards.planning import plan, refuse_errors
from dcptools.shards.values import (
    DEFAULT_SHARD_SIZE,
    INDEX,
    SINGLE_FILE,
    PlannedTensor,
    PlanOptions,
    ShardFile,
    ShardPlan,
)

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "DTYPES",
    "INDEX",
    "SHORT_NAMES",
    "SINGLE_FILE",
    "PlanOptions",
    "PlannedTensor",
    "ShardFile",
    "ShardPlan",
    "parse_exceptions",
    "plan",
    "refuse_errors",
    "written_dtypes",
]
