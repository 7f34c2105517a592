"""``review``: one HTML file that shows what a conversion would do, to send to somebody without the checkpoint.

``page`` puts it together from ``tables`` and a ``figure``; ``assets`` has its style and its script.
"""

from __future__ import annotations

from dcptools.reviewing.writing import review

__all__ = ["review"]
