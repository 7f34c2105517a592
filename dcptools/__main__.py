"""``python -m dcptools`` and the console script ``dcptools``."""

from __future__ import annotations

from typing import NoReturn

from dcptools.cli import main_group, run


def main() -> NoReturn:
    run(main_group, "dcptools")


if __name__ == "__main__":
    main()
