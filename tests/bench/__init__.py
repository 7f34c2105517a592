"""Benchmarks: ``python -m tests.bench`` (or ``make bench``).

Every number is a ratio of medians of programs that ran in turn on the same machine, so that it says something about
the programs and little about the machine. Each run is a fresh process that reads its files from the page cache:

- ``loop``: what people run today, `dcp.load` shard by shard and `safetensors` (:mod:`tests.bench.loop`);
- ``floor``: a program that only reads and writes the same number of bytes (:mod:`tests.bench.floor`);
- ``ours``: `dcptools.convert` (:mod:`tests.bench.ours`).

:mod:`tests.bench.sections` says what is compared and which ratio is wanted.
"""
