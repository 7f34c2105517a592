"""Makers of tiny checkpoints: whole ones, broken ones, hostile ones, and directories that only look like one.

Makers are plain functions. Each takes the directory that it fills (parents are made) and returns the directory, or
the small value that a test needs next to it. Import the modules, so that a call says what kind it makes::

    from checkpoints import broken, distributed, hostile, lookalikes, models, saved

    saved.trained(tmp_path / "step_10")
    broken.hole(tmp_path / "hole")
"""
