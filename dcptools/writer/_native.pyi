"""The compiled part of the writer, ``_native.c``; it is not there where it could not be compiled."""

INTERFACE: int
"""Changes when ``copy`` is to be called in another way."""

LEVELS: tuple[str, ...]
"""Names of the vector instructions that it knows and this CPU has, the best first."""

MEMORY_BYTES: int
"""What ``copy`` needs."""

def copy(
    level: str, casts: bool, pieces: tuple[tuple[int, int, int], ...], file: int, start: int, memory: memoryview, /
) -> list[int] | None:
    """Copy pieces of files, one behind the other, to ``file`` from byte ``start`` on; the lock is not held meanwhile.

    Parameters
    ----------
    level
        One of ``LEVELS``.
    casts
        Whether the pieces hold float32 that becomes bfloat16, with the bits that torch gives it.
    pieces
        A descriptor, the first byte, and the number of bytes of each.
    file
        A descriptor that can be written.
    memory
        Used meanwhile; at least ``MEMORY_BYTES``.

    Returns
    -------
    The CRC-32 of each piece. None if reading or writing failed, or if a value was cast that is or becomes Inf or NaN:
    then nothing is known of what was written, and all of it is to be written again.
    """
