"""What the model of a config expects, asked in a process of its own; its peak memory is that of the process it starts.

``python -m tests.bench.expect CONFIG``.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from dcptools.expected import expect
from tests.bench.process import MAXRSS_UNIT

if __name__ == "__main__":
    start = time.perf_counter()
    found = expect(sys.argv[1])
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    answer = {"seconds": seconds, "peak_bytes": peak * MAXRSS_UNIT, "weights": len(found.published.shapes)}
    print(json.dumps(answer))
