"""The page: what is in the checkpoint, what becomes of it, what looks wrong, and how to do it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from dcptools._text import format_bytes, format_count
from dcptools.findings import Finding, summary
from dcptools.mapping import KeyMapping
from dcptools.recipe import command_line, python_call
from dcptools.reviewing.assets import SCRIPT, STYLE, policy
from dcptools.reviewing.figure import shards_svg
from dcptools.reviewing.tables import escape, files, leftovers, outputs, table
from dcptools.shards import ShardPlan

MOST_LINES = 200  # of one finding code
_PACKAGES = ("dcptools", "torch", "transformers", "safetensors")
_SECTIONS = ("Summary", "Findings", "Mapping", "Left out", "Plan", "Do the same", "Versions")


def page_of(mapping: KeyMapping, planned: ShardPlan | None, save_dir: str) -> str:
    """The whole page; without a plan, which a mapping with errors does not have, it says what is in the way."""
    bodies = (
        _summary(mapping),
        _findings(planned.findings if planned else mapping.findings),
        outputs(mapping, planned),
        leftovers(mapping),
        _plan(planned),
        _recipe(planned, save_dir),
        _versions(mapping, planned),
    )
    links = "".join(f'<a href="#s{number}">{title}</a>' for number, title in enumerate(_SECTIONS))
    sections = "".join(
        f'<h2 id="s{number}">{title}</h2>{body}'
        for number, (title, body) in enumerate(zip(_SECTIONS, bodies, strict=True))
    )
    title = escape(mapping.checkpoint.path)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        f'<meta name="viewport" content="width=device-width"><title>Review of {title}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{title}</h1><nav>{links}</nav>{sections}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _summary(mapping: KeyMapping) -> str:
    rows = [
        (root, f"{keys:,}", format_count(elements), format_bytes(nbytes), dtypes)
        for root, keys, elements, nbytes, dtypes in mapping.checkpoint.summary()
    ]
    verdict = "".join(f"<p>{escape(line)}</p>" for line in dict.fromkeys((mapping.headline(), mapping.counts())))
    return f"{verdict}{table(('root', 'keys', 'elements', 'bytes', 'dtypes'), rows, MOST_LINES)}"


def _findings(findings: tuple[Finding, ...]) -> str:
    lines = [f'<p class="found {severity}">{escape(line)}</p>' for severity, line in summary(findings, most=MOST_LINES)]
    return "".join(lines) or "<p>Nothing was found.</p>"


def _plan(planned: ShardPlan | None) -> str:
    if planned is None:
        return "<p>There is no plan: the errors above must be fixed first.</p>"
    return f"<p>{escape(planned.headline())}</p>{shards_svg(planned)}{files(planned)}"


def _recipe(planned: ShardPlan | None, save_dir: str) -> str:
    if planned is None:
        return "<p>Nothing can be converted yet.</p>"
    return f"<pre>{escape(command_line(planned, save_dir))}</pre><pre>{escape(python_call(planned, save_dir))}</pre>"


def _versions(mapping: KeyMapping, planned: ShardPlan | None) -> str:
    rows = [*_installed(), ("Python", platform.python_version()), ("digest of .metadata", mapping.checkpoint.digest)]
    rows += [("fingerprint of the plan", planned.fingerprint)] if planned else []
    return table(("what", "which"), rows, MOST_LINES)


def _installed() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
