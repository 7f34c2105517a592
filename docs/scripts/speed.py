"""Write docs/speed.md: what `make bench` measured, with the machine and the date.

    python -m tests.bench --rounds 3 --json numbers.json
    python docs/scripts/speed.py numbers.json

`make docs-speed` does both. Several files are joined: of a section that stands twice, the last one counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "speed.md"
NOTE = "<!-- Written by docs/scripts/speed.py from the numbers of `make bench` -->"
BUSY = 0.5  # of the CPUs at work when the measurement began: others were there
INTRODUCTION = """# Speed

`make bench` measures dcptools against other programs and against limits, all on the same machine and in turn. A ratio
says something about the programs, and little about the machine; the times beside it are medians, or those of the least
disturbed round where a section says so. A target that was missed is shown. `make docs-speed` measures again, and
writes this page.
"""

WHY = {  # what a profile shows of what is missed
    "speed": (
        "The floor only reads and writes. Beyond that, ours spends its time, in this order, on the checksums of what "
        "it reads and writes, on the cast, on Python, and on the search for values that became Inf."
    ),
    "cold": (
        "Ours reads in the order of the output, and announces it: the kernel asks this disk for 1 MB at once then, and "
        "for up to 4 MB when files are read from their start. A disk that others use too gives the same program up to "
        "twice as much time or half."
    ),
    "scale": (
        "A preview makes a key, a view and an output for each tensor, and then looks at all of them once more, because "
        "no tensor may be lost. Limits are seconds of this machine's CPUs, which are not as fast every hour."
    ),
}


def main(paths: list[str]) -> None:
    PAGE.write_text(page([json.loads(Path(path).read_text()) for path in paths]), encoding="utf-8")
    print(f"{PAGE}: {PAGE.stat().st_size:,} bytes")


def page(measured: list[dict[str, Any]]) -> str:
    """The whole page; a paragraph about each machine or run, then its sections."""
    last = {section["name"]: number for number, numbers in enumerate(measured) for section in numbers["sections"]}
    blocks = [NOTE, INTRODUCTION.rstrip()]
    for number, numbers in enumerate(measured):
        sections = [each for each in numbers["sections"] if last[each["name"]] == number]
        if sections:
            blocks.append(run(numbers["machine"], numbers["parameters"], numbers["rounds"]))
            blocks += ["\n".join(section(each)) for each in sections]
    return "\n\n".join(blocks) + "\n"


def run(machine: dict[str, Any], parameters: int, rounds: int) -> str:
    """Where and when it was measured, and whether others were at work."""
    load, cpus = machine["load_average"], machine["cpus"]
    said = f"Measured on {machine['date']} with {cpus} CPUs, Python {machine['python']}, {machine['system']}, "
    said += f"in {rounds} rounds with models of {parameters:,} parameters where a section does not say otherwise."
    if load > BUSY * cpus:
        said += f" **The machine was shared**: {load:.1f} programs were at work on it when the measurement began."
    return said


def section(found: dict[str, Any]) -> Iterator[str]:
    yield f"## {found['name'].capitalize()}\n\n{sentence(found['about'].replace('`', ''))}\n"
    yield "| first / second | first | second | ratio | target | |"
    yield "| --- | ---: | ---: | ---: | --- | --- |"
    for row in found["rows"]:
        first, second = (shown(row[side], row["unit"]) for side in ("first", "second"))
        target = f"`{row['target']}`" if row["target"] else ""
        yield f"| {row['name']} | {first} | {second} | {row['ratio']:.2f} | {target} | {row['verdict'] or ''} |"
    yield from (f"\n{sentence(note)}" for note in found["notes"])
    if any(row["verdict"] == "missed" for row in found["rows"]) and found["name"] in WHY:
        yield f"\nWhy something is missed: {WHY[found['name']]}"


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def shown(samples: list[float], unit: str) -> str:
    digits = {"s": 3, "us": 1, "MB": 0}[unit]
    return f"{median(samples):.{digits}f} {unit}"


if __name__ == "__main__":
    main(sys.argv[1:])
