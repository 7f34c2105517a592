"""What the model of a checkpoint expects, asked once for all runs: each would wait for transformers to build it."""

from __future__ import annotations

import pickle
from pathlib import Path

from dcptools.expected import asking

KEPT = "expected.pickle"  # beside the output, so that it goes with it


def know(load_dir: Path, output: Path) -> None:
    """Have this process know the model of the ``config.json`` in ``load_dir``, as if it had asked for it already."""
    config, kept = (load_dir / "config.json").read_text(), output.parent / KEPT
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        expected = asking.expect(config)
        assert not expected.unpublished, expected.unpublished
        kept.write_bytes(pickle.dumps(expected))
    asking._answers[config] = pickle.loads(kept.read_bytes())  # the same each time, as in one process
