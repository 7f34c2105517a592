"""The commands: the same four functions, with click."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dcptools._parallel import default_workers
from dcptools._text import counted, format_bytes
from dcptools.cli.headings import HELP, command
from dcptools.cli.options import (
    PATH,
    PLACE,
    Place,
    all_option,
    diff_options,
    expected_of,
    given_of,
    given_to_preview,
    leftover_option,
    mapping_options,
    model_options,
    output_options,
    plan_of,
    plan_options,
    preview_of,
    source_options,
    the_load_dir,
    verify_options,
    workers_option,
)
from dcptools.cli.output import Output, tell, tell_findings, tell_verified
from dcptools.cli.running import model_is_written, shared_by
from dcptools.errors import DcptoolsError
from dcptools.storage import check_document, is_url, write_document


@command("inspect")
@source_options
@click.option(
    "--tree", "show_tree", is_flag=True, help="Print the modules as a tree; layers that are alike share a line."
)
@all_option
@output_options
def inspect_command(load_dir: Place, show_tree: bool, output: Output) -> None:
    """Show what is in a checkpoint: keys, shapes, dtypes, files. Reads only metadata."""
    from dcptools.checkpoint import read
    from dcptools.tree import tree

    checkpoint = read(load_dir)

    def text() -> str:
        keys = tree(checkpoint) if show_tree else checkpoint.keys_table(**output.rows)
        return f"{checkpoint.text(**output.rows)}\n\n{keys}"

    output.show(checkpoint.to_json, text)


@command("preview", short_help="Show the name that each key gets, and what looks wrong.")
@source_options
@mapping_options
@leftover_option
@all_option
@output_options
def preview_command(load_dir: Place, list_leftovers: bool, output: Output, **options: Any) -> None:
    """Show the name that each key gets, what is left out, and what looks wrong. Writes nothing."""
    mapping = preview_of(load_dir, options)
    output.show(mapping.to_json, lambda: f"{mapping.text(**output.rows)}{_leftovers(mapping, list_leftovers)}")
    if mapping.errors:  # shown above unless quiet; --json promises one object
        tell_findings(mapping.errors if output.quiet else ())
        tell(f"Error: {counted(len(mapping.errors), 'error')}: this checkpoint cannot be converted with these options.")
        raise click.exceptions.Exit(1)


@command("plan", short_help="Show the files of the result and the memory needed.")
@source_options
@mapping_options
@plan_options
@all_option
@output_options
def plan_command(load_dir: Place, output: Output, **options: Any) -> None:
    """Show the files of the result, their sizes, and the memory needed. Writes nothing."""
    planned = plan_of(load_dir, options)
    tell_findings(planned.findings if output.speaks else ())
    output.show(planned.to_json, lambda: planned.text(**output.rows))


@command("review", short_help="Write a review of the conversion as one HTML file.")
@source_options
@click.option("--html", type=PATH, required=True, help="HTML file to write.")
@click.option("--save-dir", type=PLACE, help="Output directory or URL to put into the command that the file shows.")
@mapping_options
@plan_options
@output_options
def review_command(load_dir: Place, html: Path, save_dir: Place | None, output: Output, **options: Any) -> None:
    """Write one HTML file that shows what a conversion would do: mapping, leftovers, findings, files, and the command.

    The file loads nothing from elsewhere: send it to somebody who has neither the checkpoint nor Jupyter.
    """
    from dcptools.reviewing import review

    check_document(html, "The review")
    mapping = preview_of(load_dir, options)
    planning = {name: options[name] for name in ("shard_size", "dtype", "dtype_for", "strict")}
    written = review(mapping, html, save_dir=save_dir, **planning)
    tell_findings((*mapping.errors, *mapping.warnings) if output.speaks else ())
    output.show(lambda: {"html": str(written)}, lambda: f"Wrote {written}.")


@command("convert")
@source_options
@click.option("--save-dir", type=PLACE, help="Output directory or URL.  [default: <load-dir>/hf_ckpt]")
@mapping_options
@plan_options
@click.option("--overwrite", is_flag=True, help="Replace a model that is already in the output directory.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue where an earlier run stopped; if this one stops, keep what it has finished.",
)
@click.option("--no-fsync", is_flag=True, help="Do not wait until the data is on the disk; for scratch file systems.")
@workers_option
@click.option("--verify", is_flag=True, help="Read the written model back and compare it bit for bit.")
@click.option("--report", type=PATH, help="Write the plan, findings, versions and checksums to this file, as JSON.")
@click.option("--dry-run", is_flag=True, help="Print the mapping, the findings and the files; write nothing.")
@leftover_option
@all_option
@output_options
def convert_command(
    load_dir: Place,
    save_dir: Place | None,
    dry_run: bool,
    list_leftovers: bool,
    output: Output,
    overwrite: bool,
    resume: bool,
    no_fsync: bool,
    workers: int | None,
    verify: bool,
    report: Path | None,
    **options: Any,
) -> None:
    """Convert a PyTorch distributed checkpoint to a HuggingFace model.

    Floating-point tensors are written as bfloat16 into model-*.safetensors with an index, beside the config and the
    tokenizer of --model-assets-dir. Memory stays at a few hundred MB, whatever the size of the model.
    """
    from dcptools.verifying import check_receipt_path, receipt_of, verify_written, write_or_find, write_receipt
    from dcptools.writer import check_target, default_save_dir

    target = save_dir or default_save_dir(load_dir)
    if report is not None:
        check_receipt_path(report)
    planned = plan_of(load_dir, options)
    tell_findings(() if output.quiet else planned.findings)
    left = _leftovers(planned.mapping, list_leftovers)
    if dry_run:
        check_target(planned, target, overwrite=overwrite, resume=resume)
        _show_dry_run(planned, target, planned.peak_bytes_with(workers or default_workers(), target), left, output)
        return
    team = click.get_current_context().obj
    filling, comparing, summing = shared_by(team, resume)
    running: dict[str, Any] = {"workers": workers or (team.workers if team else None), "progress": not output.quiet}
    how: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "fsync": not no_fsync, **filling}
    written, found = write_or_find(planned, target, **how, running=running)
    with model_is_written(target):
        if verify and found is None:
            found = verify_written(planned, target, **comparing, **running)
        try:
            if report is not None:
                write_receipt(report, receipt_of(planned, written, verified=verify, **summing, **running))
            output.show(
                lambda: written.to_json() | ({"verification": found.to_json()} if found else {}),
                lambda: f"{written.text(**output.rows)}{left}" + (f"\n{found.headline()}" if found else ""),
            )
        except DcptoolsError as error:
            raise DcptoolsError(f"{error}\nThe model is complete in {target}; only this report is missing.") from None


def _show_dry_run(planned: Any, target: Place, needed: int, left: str, output: Output) -> None:
    """What would be written; ``needed`` is the memory for it, in bytes."""
    there = f" Uploading there takes about {format_bytes(needed)} of memory." if is_url(target) else ""
    output.show(
        lambda: {
            "mapping": planned.mapping.to_json(),
            "plan": planned.to_json() | {"peak_bytes": needed},
            "save_dir": str(target),
        },
        lambda: (
            f"{planned.mapping.table(**output.rows)}\n\n{planned.text(**output.rows)}\n\n"
            f"Dry run: nothing was written to {target}.{there}{left}"
        ),
    )


@command("verify", short_help="Compare a model on the disk with its checkpoint, bit for bit.")
@model_options
@mapping_options
@verify_options
@click.option("--report", type=PATH, help="Compare with this file of convert --report, instead of a checkpoint.")
@workers_option
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@all_option
@output_options
def verify_command(
    save_dir: Place,
    directory: Place | None,
    load_dir: Place | None,
    report: Path | None,
    workers: int | None,
    strict: bool,
    output: Output,
    **options: Any,
) -> None:
    """Compare a model on the disk with the checkpoint that it was made of, bit for bit after the cast; or compare a
    copy of it with the report of the conversion.

    Another program may have written the model: its files decide the dtypes unless --dtype is given, and how it is cut
    into files matters only with --shard-size. The exit status is 1 if anything differs.
    """
    from dcptools.verifying import told_apart, verify

    if directory is not None or load_dir is not None:
        source = the_load_dir(directory, load_dir)
        with told_apart(save_dir, source):
            expected, saying = expected_of(source, options)
        found = verify(save_dir, expected, report=report, **saying, workers=workers, progress=not output.quiet)
    else:
        found = verify(save_dir, report=report, **given_of(options), workers=workers, progress=not output.quiet)
    tell_verified(found, output)
    if not found.ok or (strict and found.warnings):
        raise click.exceptions.Exit(1)


@command("diff", short_help="Compare two checkpoints or models, tensor by tensor.")
@diff_options
@mapping_options
@workers_option
@all_option
@output_options
def diff_command(
    a: Place,
    b: Place,
    by: str,
    keys: tuple[str, ...],
    cast: bool,
    csv: Path | None,
    workers: int | None,
    output: Output,
    **options: Any,
) -> None:
    """Compare A and B, each a distributed checkpoint or a HuggingFace model, tensor by tensor.

    Shows tensors that only one of them has, different shapes and dtypes, and how far apart the values are. The exit
    status is 0 if they are equal, 1 if they differ, and 2 if they cannot be compared.
    """
    from dcptools.comparing import diff

    try:
        if csv is not None:
            check_document(csv, "The table")
        given = given_to_preview(options)
        found = diff(a, b, by=by, keys=keys or None, cast=cast, workers=workers, progress=not output.quiet, **given)
        if csv is not None:
            write_document(csv, "The table", found.to_frame().to_csv(index=False))
    except DcptoolsError as error:
        error.exit_status = 2
        raise
    output.show(found.to_json, lambda: found.text(**output.rows))
    if not found.same:
        raise click.exceptions.Exit(1)


@click.group(name="dcptools", context_settings=HELP)
@click.version_option(package_name="dcptools")
def main_group() -> None:
    """PyTorch distributed checkpoints (DCP): look into them, review the conversion, convert to HuggingFace."""


for _command in (
    inspect_command,
    preview_command,
    plan_command,
    review_command,
    convert_command,
    verify_command,
    diff_command,
):
    main_group.add_command(_command)


def _leftovers(mapping: Any, wanted: bool) -> str:
    """A line for each key that is left out, if that was requested."""
    return "".join(f"\nleft out: {left.key} ({left.reason})" for left in mapping.leftovers) if wanted else ""
