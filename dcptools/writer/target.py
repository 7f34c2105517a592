"""The output directory: what may be there, and whether there is room. Nothing is changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path

from dcptools._option import option
from dcptools._text import format_bytes, some
from dcptools.errors import OutputExists, TargetError, system_errors
from dcptools.shards import INDEX, ShardPlan
from dcptools.storage import TEMPORARY, is_url, join, meant_url, open_source, takes_no_files
from dcptools.writer.swap import Swap, is_file, is_shard

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
_WEIGHT_SUFFIXES = (".safetensors", ".bin")
URL_JOURNAL = f"{TEMPORARY}journal"  # beside shards at a URL that a run with resume has finished
SPARE_BYTES = 64 << 10  # for directory entries, and what is left of the last blocks


def default_save_dir(load_dir: str | os.PathLike[str]) -> Path | str:
    """Where a checkpoint is converted to unless said otherwise.

    >>> default_save_dir("step-100").as_posix()
    'step-100/hf_ckpt'
    """
    return join(load_dir, "hf_ckpt") if is_url(load_dir) else Path(load_dir, "hf_ckpt")


def check_target(plan: ShardPlan, save_dir: Path | str, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse a directory or URL that must not be written to. Nothing is created yet.

    At a URL, with ``resume``, shards that a stopped run has left are not a model.

    Raises
    ------
    OutputExists, TargetError
    """
    if is_url(save_dir):
        check_url(plan, str(save_dir), overwrite=overwrite, resume=resume)
        return
    save_dir, checkpoint = Path(save_dir), Path(plan.checkpoint.path)
    there = _existing(save_dir)
    if there != save_dir:
        _refuse_odd_name(save_dir)
    if not there.is_dir():
        what = "is a file" if there == save_dir else f"cannot be made: {there} is a file"
        raise TargetError(f"The output {save_dir} {what}.\nGive a new directory, or one without a model.")
    if not os.access(there, os.W_OK | os.X_OK):
        if _is_read_only(there):
            raise TargetError(f"{there} is on a read-only file system.\nGive a directory elsewhere.")
        raise TargetError(f"{there} cannot be written to: permission denied.\nGive a directory that you may write to.")
    if takes_no_files(there):
        raise TargetError(f"The file system of {there} has no room for files.\nGive a directory elsewhere.")
    for file in plan.checkpoint.files:
        if _same(save_dir, (checkpoint / file.name).parent):
            raise TargetError(
                f"The output {save_dir} is where the checkpoint's own files are.\nGive another directory."
            )
    if plan.assets is not None and plan.assets.directory and _same(save_dir, Path(plan.assets.directory)):
        raise TargetError(f"The output {save_dir} is the assets directory itself.\nGive another directory.")
    if not overwrite:
        _refuse_existing(plan, save_dir, _files(save_dir))
    _refuse_what_is_in_the_way(plan, save_dir)
    _check_space(plan, save_dir)


def check_url(plan: ShardPlan, url: str, *, overwrite: bool, resume: bool) -> None:
    """Refuse a URL that must not be written to.

    Raises
    ------
    OutputExists, TargetError, UsageError
    """
    source = open_source(url)
    if url.startswith("hf://"):
        raise TargetError(
            f"{url} can only be read: writing there makes a commit per file.\nConvert into a directory, and upload it "
            "with `hf upload`."
        )
    if url.startswith(("http://", "https://")):
        raise TargetError(f"{url} can only be read.\nGive a directory, or the URL of a bucket.")
    own = {join(plan.checkpoint.path, os.path.dirname(file.name)).rstrip("/") for file in plan.checkpoint.files}
    if url.rstrip("/") in own:
        raise TargetError(f"The output {url} is where the checkpoint's own files are.\nGive another URL.")
    if plan.assets is not None and plan.assets.directory.rstrip("/") == url.rstrip("/"):
        raise TargetError(f"The output {url} is the assets directory itself.\nGive another URL.")
    with system_errors(TargetError, f"The output {url} cannot be used"):
        kind = source.kind()
        names = source.entries() if kind == "directory" else []
    if kind == "file":
        raise TargetError(f"The output {url} is a file.\nGive a new URL, or one without a model.")
    if kind is None:
        _refuse_odd_name(url)
    if resume and URL_JOURNAL in names and plan.index is not None:
        names = [name for name in names if not is_shard(name)]  # whose they are is checked when they are taken over
    if resume and overwrite and plan.index is not None and (existing := _weights(names)):
        raise TargetError(
            f"{url} already holds {some(existing, 3)}, and a run with {option('resume', True)} cannot replace a model "
            "at a URL: its shards show one by one.\nNothing was written. Give another URL, or remove the old model "
            f"first; or give {option('overwrite', True)} alone."
        )
    if not overwrite:
        _refuse_existing(plan, url, names)


def _refuse_odd_name(save_dir: Path | str) -> None:
    """Refuse to make a directory that was meant as a URL, or that somebody takes for the file of weights."""
    if url := meant_url(save_dir):
        raise TargetError(f"The output {save_dir} is no URL, and there is no such directory.\nGive a URL: {url}")
    stem, suffix = os.path.splitext(save_dir)
    if suffix in _WEIGHT_SUFFIXES:
        raise TargetError(
            f"The output {save_dir} has the name of a file, and a model is written into a directory.\n"
            f"Give a directory, for example {stem}: the files in it are named by their number."
        )


def _refuse_existing(plan: ShardPlan, save_dir: Path | str, names: Collection[str]) -> None:
    existing = [*_weights(names), *_replaced_assets(plan, names)]
    if existing and URL_JOURNAL in names:
        raise OutputExists(
            f"{save_dir} holds {some(existing, 3)} of a run that was stopped.\nNothing was written. Continue it "
            f"({option('resume', True)}), or replace what is there ({option('overwrite', True)})."
        )
    if existing:
        raise OutputExists(
            f"{save_dir} already holds {some(existing, 3)}.\nNothing was written. Give another directory, or overwrite "
            f"({option('overwrite', True)}): that replaces the model and keeps weights of anything else."
        )


def _weights(names: Iterable[str]) -> list[str]:
    """The names that are weights of any kind or an index of weights.

    More than what is replaced (``old_model``): whoever names a directory with weights in it may mean another one.
    """
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in _WEIGHTS))


def _replaced_assets(plan: ShardPlan, there: Collection[str]) -> list[str]:
    """The files that assets would replace; somebody may have put their own tokenizer there."""
    return [asset.name for asset in plan.assets.files if asset.name in there] if plan.assets else []


def _files(save_dir: Path) -> set[str]:
    """The names of the files in the directory, once what a killed run left is put right."""
    if not save_dir.is_dir():
        return set()
    names = {entry.name for entry in save_dir.iterdir() if is_file(entry) and not entry.name.startswith(TEMPORARY)}
    return Swap(save_dir).after_recovery(names)


def _refuse_what_is_in_the_way(plan: ShardPlan, save_dir: Path) -> None:
    """Refuse directories that have the names of files to come."""
    swap = Swap(save_dir)
    if os.path.lexists(swap.before) and not swap.begun:
        raise TargetError(f"{swap.before} is in the way.\nNothing was written. Remove it, or give another directory.")
    for path in (save_dir / name for name in planned_names(plan)):
        if os.path.lexists(path) and not is_file(path):
            raise TargetError(
                f"{path} is a directory, but a file of that name has to be written.\nNothing was written. Remove it, "
                "or give another directory."
            )


def planned_names(plan: ShardPlan) -> list[str]:
    """The files that are written, in the order in which they get their names; the last one makes them a model."""
    assets = plan.assets.files if plan.assets else ()
    index = [INDEX] if plan.index is not None else []
    return [asset.name for asset in assets] + [file.filename for file in plan.files] + index


def free_bytes(save_dir: Path) -> int:
    """Free bytes on the file system of a directory that need not exist yet."""
    return shutil.disk_usage(_existing(save_dir)).free


def _existing(save_dir: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    with system_errors(TargetError, f"The output {save_dir} cannot be used"):
        return next(path for path in (save_dir, *save_dir.absolute().parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    """As ``Path.exists``, but with an OSError for a name that is too long, and for a symlink that leads to itself."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_read_only(directory: Path) -> bool:
    """Whether nobody can write there, whatever the permissions say."""
    return hasattr(os, "statvfs") and bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _check_space(plan: ShardPlan, save_dir: Path) -> None:
    """Refuse a disk that is too small."""
    assets = sum(file.nbytes for file in plan.assets.files) if plan.assets else 0
    stale = sum(path.lstat().st_blocks * 512 for path in remains(save_dir))  # they go before anything is written
    needed, free = plan.file_bytes + assets + SPARE_BYTES, free_bytes(save_dir) + stale
    if needed > free:
        raise TargetError(
            f"{save_dir} has {format_bytes(free)} free, but {format_bytes(needed)} is needed.\nNothing was written. "
            "Free some space, or give a directory on another disk. "
            f"(With {option('overwrite', True)}, the old files are removed last.)"
        )


def remains(save_dir: Path) -> list[Path]:
    """Temporary files of a run that was killed, or of one that is still running if the lock is taken."""
    return [path for path in save_dir.glob(f"{TEMPORARY}*.tmp") if is_file(path)]


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and os.path.samefile(one, other)
