"""Hostile files by the thousand, guided by the lines of dcptools that they reach: ``python -m tests.fuzz``.

``seeds`` are sound files and those of ``checkpoints.hostile``; ``mutate`` changes them, knowing their formats, and
``made`` makes metadata anew; ``targets`` read the files as a user would, and ``differential`` compares with other
readers; ``guard`` watches what must not happen; ``child`` is a process that does this for one class of files, in
bounded memory and time, and ``__main__`` starts such processes and counts.
"""
