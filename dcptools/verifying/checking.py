"""``verify``: read a model again, and compare it with the checkpoint that it was made from."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcptools._option import option
from dcptools._parallel import Progress
from dcptools._text import format_shape
from dcptools.checkpoint import Checkpoint, as_checkpoint, is_checkpoint
from dcptools.comparing import checked_workers, preview_beside
from dcptools.errors import NotVerified, UsageError
from dcptools.findings import Finding, summary_lines
from dcptools.hf import Model, Weight, as_model
from dcptools.mapping import KeyMapping
from dcptools.shards import ShardPlan, parse_exceptions, refuse_errors, written_dtypes
from dcptools.storage import at_once
from dcptools.verifying.causes import with_causes
from dcptools.verifying.copies import with_receipt
from dcptools.verifying.files import about_assets, about_files
from dcptools.verifying.order import told_apart
from dcptools.verifying.receipt import read_receipt
from dcptools.verifying.values import Compared, Verification, VerifiedWeight
from dcptools.verifying.weights import Difference, Expected, about_values, castable, compare_values

if TYPE_CHECKING:
    import torch


def verify(
    save_dir: Model | str | os.PathLike[str],
    load_dir: ShardPlan | KeyMapping | Checkpoint | str | os.PathLike[str] | None = None,
    *,
    report: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]] = (),
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Verification:
    """Read a model again, and compare every weight with the checkpoint, bit for bit after the cast.

    The values are read in another way than they were written: by the safetensors library on one side, and by boxes
    of the stored tensors on the other. Headers, index, sizes, assets and config are compared too. The model may be what
    another program wrote: names and dtypes are compared, and how it is cut into files does not matter. With a plan,
    files must be the planned ones, byte for byte.

    Parameters
    ----------
    save_dir
        The model's directory.
    load_dir
        The checkpoint, or what :func:`dcptools.preview` or :func:`dcptools.plan` returned for it. None: the model is
        compared with a report only.
    report
        A file that ``convert(report=...)`` wrote: sizes and checksums must be those. This needs no checkpoint.
    dtype, dtype_for
        What must have been written, as in :func:`dcptools.plan`. By default, what the files say, if a cast can give
        it. A plan says it itself.
    workers, progress, cancel
        As in :func:`dcptools.write`; bytes are those of both sides.
    options
        Options of :func:`dcptools.preview`, for a checkpoint. Without ``model_assets_dir`` and ``reference``, the
        model's own ``config.json`` says what it is tied to and how the checkpoint is read, where names differ.

    Raises
    ------
    NotAModel
        There is no model in ``save_dir``. What differs is not raised: see ``Verification.ok``.
    FindingsError
        The mapping has errors, so it is not known what the model should be.
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
        A stored item is damaged, or in an encoding that is not read.
    UsageError
        An option cannot be used, or the model and the checkpoint are swapped.
    Cancelled
        The event was set.

    Examples
    --------
    >>> report = convert(demo.checkpoint, tmp_dir / "model")
    >>> print(verify(tmp_dir / "model", demo.checkpoint).headline())  # doctest: +ELLIPSIS
    The 47 weights of .../model are those of .../checkpoint, cast to bfloat16.
    """
    start = time.perf_counter()
    checked_workers(workers)
    running: dict[str, Any] = {"workers": workers, "progress": progress, "cancel": cancel}
    if load_dir is None and report is None:
        if isinstance(save_dir, (str, os.PathLike)) and is_checkpoint(save_dir):
            raise UsageError(f"{save_dir} is a checkpoint.\nGive the model that was made of it first, and then it.")
        raise UsageError(
            "There is nothing to compare the model with.\n"
            f"Give the checkpoint, or a report that convert wrote ({option('report')})."
        )
    if load_dir is None and (dtype is not None or tuple(dtype_for) or options):
        raise UsageError("Names and dtypes are in the report.\nGive options only with a checkpoint.")
    if "shard_size" in options:
        raise UsageError(
            "A shard size is that of a plan.\n"
            "Give verify what plan(mapping, shard_size=...) returns, instead of the checkpoint."
        )
    receipt = read_receipt(report) if report is not None else None
    with told_apart(save_dir, load_dir):
        source = as_checkpoint(load_dir) if isinstance(load_dir, (str, os.PathLike)) else load_dir
        model = as_model(save_dir)
        expected = _expected(source, model, dtype, dtype_for, options) if source is not None else None
    compared = []
    if expected is not None:
        mapping, plan, wanted, unused = expected
        found = _with_checkpoint(model, mapping, plan, wanted, running)
        compared.append(found._replace(findings=(*with_causes(found.findings, model, mapping), *unused)))
    if receipt is not None:
        compared.append(with_receipt(model, receipt, **running))
    return _verification(model, compared, start)


def verify_written(
    plan: ShardPlan,
    save_dir: str | os.PathLike[str],
    compare: Callable[..., dict[str, list[Difference]]] = compare_values,
    **running: Any,
) -> Verification:
    """Verify what was just written; ``running`` has workers, progress and cancel.

    ``compare`` does what ``compare_values`` does, if this process is not alone.

    Stored checksums, which were compared when it was written, are not compared again.

    Raises
    ------
    NotVerified
        The model is not what it should be.
    """
    found = compared_with_plan(plan, save_dir, compare, **running, check=False)
    refuse_differences(found)
    return found


def compared_with_plan(
    plan: ShardPlan,
    save_dir: str | os.PathLike[str],
    compare: Callable[..., dict[str, list[Difference]]] = compare_values,
    **running: Any,
) -> Verification:
    """The model there as the plan's; see ``verify_written``."""
    start = time.perf_counter()
    model = as_model(save_dir)
    compared = _with_checkpoint(model, plan.mapping, plan, _planned(plan), running, compare)
    return _verification(model, [compared], start)


def _verification(model: Model, compared: Sequence[Compared], start: float) -> Verification:
    return Verification(
        model.path,
        " and ".join(one.against for one in compared),
        _merged(compared),
        model.nbytes,
        time.perf_counter() - start,
        tuple(dict.fromkeys(finding for one in compared for finding in one.findings)),
    )


def _planned(plan: ShardPlan) -> dict[str, Expected]:
    return {t.output.name: Expected(t.output, t.dtype) for file in plan.files for t in file.tensors}


def _with_checkpoint(
    model: Model,
    mapping: KeyMapping,
    plan: ShardPlan | None,
    expected: dict[str, Expected],
    running: dict[str, Any],
    compare: Callable[..., dict[str, list[Difference]]] = compare_values,
) -> Compared:
    weights, wrong = _by_headers(model, expected)
    alike = {name: entry.output for name, entry in expected.items() if weights[name].state == "same"}
    different = compare(mapping.checkpoint, alike, model, **running)
    weights |= {name: _with_values(weights[name], found) for name, found in different.items()}
    made = plan is None and any(found.code == "adapter-config" for found in mapping.findings)
    beside = about_files(model, plan), about_assets(model, mapping.assets, exact=plan is not None, made=made)
    files, assets = at_once(model.source, list, beside)
    model.source.close()
    findings = (
        *files,
        *wrong,
        *(about_values(model.weights[name], found) for name, found in sorted(different.items())),
        *assets,
    )
    return Compared(mapping.checkpoint.path, weights, findings)


def _merged(compared: Sequence[Compared]) -> tuple[VerifiedWeight, ...]:
    """Each weight once, as described by the first that finds something wrong with it."""
    found: dict[str, VerifiedWeight] = {}
    for weight in (weight for one in compared for weight in one.weights.values()):
        if found.setdefault(weight.name, weight).state == "same":
            found[weight.name] = replace(weight, stored=weight.stored or found[weight.name].stored)
    return tuple(found[name] for name in sorted(found))


def refuse_differences(found: Verification) -> None:
    """Raise NotVerified if there are errors; all of them are named.

    Raises
    ------
    NotVerified
        The model is not what it should be.
    """
    if found.errors:
        lines = [found.headline(), *summary_lines(found.errors)]
        advice = "Do not use it. Check the disk and the memory of this machine, and write it again."
        raise NotVerified("\n".join([*lines, advice]), found.findings)


def _expected(
    source: ShardPlan | KeyMapping | Checkpoint,
    model: Model,
    dtype: str | torch.dtype | None,
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]],
    options: dict[str, Any],
) -> tuple[KeyMapping, ShardPlan | None, dict[str, Expected], list[Finding]]:
    """What the weights of the model must be, by name; and what is odd about what was asked."""
    exceptions = parse_exceptions(dtype_for)
    if isinstance(source, ShardPlan):
        if dtype is not None or exceptions or options:
            raise UsageError("Names and dtypes are in the plan.\nGive the options to plan and preview instead.")
        return source.mapping, source, _planned(source), []
    if isinstance(source, KeyMapping) and options:
        raise UsageError("Names are in the mapping.\nGive the options to preview instead.")
    if dtype is None and exceptions:
        raise UsageError(
            f"{option('dtype_for')} was given without {option('dtype')}.\n"
            "Give both, or neither to take the dtypes of the files."
        )
    mapping = source if isinstance(source, KeyMapping) else preview_beside(source, model, options)
    refuse_errors(mapping.findings, strict=False)
    if dtype is None:
        return mapping, None, {output.name: Expected(output, None) for output in mapping.outputs}, []
    written, unused = written_dtypes(mapping, dtype, exceptions)
    wanted = {output.name: Expected(output, written[output.name]) for output in mapping.outputs}
    return mapping, None, wanted, unused


def _by_headers(model: Model, expected: Mapping[str, Expected]) -> tuple[dict[str, VerifiedWeight], list[Finding]]:
    """Every weight that is there or should be, as far as names, shapes and dtypes tell, and what is wrong with it."""
    compared = [
        _by_header(name, model.weights.get(name), expected.get(name))
        for name in sorted(model.weights.keys() | expected.keys())
    ]
    return {weight.name: weight for weight, _ in compared}, [found for _, found in compared if found is not None]


def _by_header(name: str, weight: Weight | None, entry: Expected | None) -> tuple[VerifiedWeight, Finding | None]:
    options = f"give the options that it was converted with, such as {option('model_assets_dir')}, or write it again"
    if entry is None:
        assert weight is not None
        found = VerifiedWeight(name, "unexpected", weight.shape, "", weight.dtype.name, weight.file, 0)
        return found, Finding("disk-unexpected", name, f"it is in {weight.file} but not expected", options)
    output, stored = entry.output, entry.output.dtype
    if weight is None:
        what = f"{stored.name} {format_shape(output.shape)} is expected, but no readable file has it"
        missing = VerifiedWeight(name, "missing", output.shape, stored.name, "", "", 0)
        return missing, Finding("disk-missing", name, what, options)
    same = VerifiedWeight(name, "same", weight.shape, stored.name, weight.dtype.name, weight.file, 0)
    if weight.shape != output.shape:
        what = f"it is {format_shape(weight.shape)}, and {format_shape(output.shape)} is expected"
        return replace(same, state="shape"), Finding("disk-shape", name, what, options)
    if entry.dtype is not None and weight.dtype != entry.dtype:
        what = f"it is {weight.dtype.name}, and {entry.dtype.name} is expected"
        options = f"give the dtypes that were written ({option('dtype')}, {option('dtype_for')}), or write it again"
    elif not castable(stored, weight.dtype):
        what = f"it is {weight.dtype.name}, and no conversion makes that of {stored.name}"
    else:
        return same, None
    return replace(same, state="dtype"), Finding("disk-dtype", name, what, options)


def _with_values(weight: VerifiedWeight, differences: Iterable[Difference]) -> VerifiedWeight:
    return replace(weight, state="values", differing=sum(difference.values for difference in differences))
