"""``read_model``: a directory, an index or a single file becomes a :class:`Model`. No values are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from dcptools._fields import Wrong
from dcptools._safetensors import MAX_HEADER_BYTES, SHARDING, Header, Part, parse_header
from dcptools._safetensors import header_bytes as unchecked
from dcptools._text import format_bytes, some
from dcptools.errors import BrokenCheckpoint, BrokenModel, NotAModel, check_stage, system_errors
from dcptools.findings import Finding
from dcptools.hf.values import Model, Weight, WeightFile
from dcptools.storage import FileState, Source, open_source

SUFFIX = ".safetensors"
_INDEX_SUFFIX = f"{SUFFIX}.index.json"
AHEAD_BYTES = 1 << 16  # of each file, read at once if each read takes long; most headers are shorter
_FIRST = ("model", "adapter_model")  # what transformers and peft look for
_WHAT_TO_DO = "Give the directory of a model, one that holds model.safetensors or model.safetensors.index.json."


class _Index(NamedTuple):
    name: str  # "" if there is none
    weight_map: dict[str, str]
    metadata: dict[str, Any]
    findings: list[Finding]


def read_model(path: str | os.PathLike[str]) -> Model:
    """Read the headers and the index of a HuggingFace model; no values, no torch.

    Parameters
    ----------
    path
        The model's directory, its index, or a single ``.safetensors`` file; also a URL that fsspec knows.

    Raises
    ------
    NotAModel
        The path does not exist, or has no safetensors files. What is wrong with single files is not raised: see
        ``Model.findings``.

    Examples
    --------
    >>> report = convert(demo.checkpoint, tmp_dir / "model")
    >>> read_model(tmp_dir / "model").weights["lm_head.weight"].dtype.name
    'bfloat16'
    """
    with system_errors(NotAModel, f"The model {path} cannot be read"):
        given = open_source(path)
        source, names, index = _parts(given)
        states = source.states(names)
        if source.ahead:
            source.will_read((name, 0, min(state.nbytes, AHEAD_BYTES)) for name, state in states.items() if state)
        headers = {name: _header(source, name, states[name]) for name in names}
    files = tuple(file for file, _, _ in headers.values())
    weights, twice = _merged({name: header.parts for name, (_, header, _) in headers.items() if header is not None})
    findings = (
        *(found for _, _, found in headers.values() if found is not None),
        *twice,
        *index.findings,
        *_about_index(index, weights, {file.name for file in files if file.header_nbytes}),
    )
    ordered = MappingProxyType(dict(sorted(weights.items())))
    maps = MappingProxyType(index.weight_map), MappingProxyType(index.metadata)
    return Model(given.location, ordered, files, index.name, *maps, findings, source)


def as_model(model: Model | str | os.PathLike[str]) -> Model:
    """The model itself, or the one at that path."""
    check_stage(model, "Model", "path")
    return model if isinstance(model, Model) else read_model(model)


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether there are safetensors files at the path, or it is one, or the index of some."""
    try:
        source = open_source(path)
        if source.kind() == "directory":
            return any(name.endswith((SUFFIX, _INDEX_SUFFIX)) for name in source.entries())
        return source.kind() == "file" and source.location.endswith((SUFFIX, _INDEX_SUFFIX))
    except (OSError, ValueError):  # ValueError: a zero byte in a path
        return False


def _parts(source: Source) -> tuple[Source, list[str], _Index]:
    """Where the files are, the names of those with weights, and the index."""
    kind = source.kind()
    if kind == "file" and source.location.endswith((SUFFIX, _INDEX_SUFFIX)):
        directory, name = os.path.split(source.location)
        source = open_source(directory)
        if name.endswith(SUFFIX):
            return source, [name], _no_index()
        index = _read_index(source, name)
        return source, sorted(set(index.weight_map.values())), index
    if kind != "directory":
        what = "is not a safetensors file or an index of some" if kind else "does not exist"
        raise NotAModel(f"{source.location} {what}.\n{_WHAT_TO_DO}")
    entries = source.entries()
    for stem in _FIRST:  # a single file comes first, as it does for transformers
        if stem + SUFFIX in entries:
            return source, [stem + SUFFIX], _no_index()
        if stem + _INDEX_SUFFIX in entries:
            index = _read_index(source, stem + _INDEX_SUFFIX)
            return source, sorted(set(index.weight_map.values())), index
    names = sorted(name for name in entries if name.endswith(SUFFIX) and not name.startswith("."))
    if not names:
        raise NotAModel(_nothing_there(source.location, entries))
    return source, names, _no_index()


def _nothing_there(path: str, entries: list[str]) -> str:
    if ".metadata" in entries:
        return f"{path} is a distributed checkpoint, not a HuggingFace model.\n{_WHAT_TO_DO}"
    pickled = sorted(name for name in entries if name.endswith((".bin", ".pt", ".pth")))
    if pickled:
        return (
            f"{path} has no safetensors files; {some(pickled, 3)} may hold weights as pickles, which dcptools does not "
            "read.\nLoad it with transformers, and save it again with save_pretrained."
        )
    return f"{path} has no safetensors files.\n{_WHAT_TO_DO}"


def _no_index() -> _Index:
    return _Index("", {}, {}, [])


def _read_index(source: Source, name: str) -> _Index:
    """What an index says, as far as it can be used."""
    state = source.state(name)
    if state is None or state.nbytes > MAX_HEADER_BYTES:
        limit = format_bytes(MAX_HEADER_BYTES)
        return _Index(name, {}, {}, [_bad_index(name, f"it has more than {limit}, or is no ordinary file")])
    try:
        parsed = json.loads(source.content(name))
    except (ValueError, RecursionError):
        return _Index(name, {}, {}, [_bad_index(name, "it is not JSON in UTF-8")])
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weight_map, dict):
        return _Index(name, {}, {}, [_bad_index(name, "it has no weight_map")])
    metadata = parsed.get("metadata")
    good = {key: file for key, file in weight_map.items() if _is_plain(file)}
    wrong = {key: file for key, file in weight_map.items() if key not in good}
    said = "the index says that it is in {!r:.200}, which is not in the directory"
    bad = [_bad_index(key, said.format(file)) for key, file in wrong.items()]
    return _Index(name, good, metadata if isinstance(metadata, dict) else {}, bad)


def _is_plain(file: Any) -> bool:
    """Whether that names a file in the same directory: an index must not lead out of it."""
    return isinstance(file, str) and file.endswith(SUFFIX) and not {"/", "\\", "\0"}.intersection(file)


def _bad_index(key: str, message: str) -> Finding:
    return Finding("model-index", key, message, "write or copy the model again")


def _header(source: Source, name: str, state: FileState | None) -> tuple[WeightFile, Header | None, Finding | None]:
    """One file: what is known about it, and what is wrong."""
    if state is None:
        return (
            WeightFile(name, None, 0, ()),
            None,
            Finding("model-file", name, "the file is missing", "copy it again"),
        )
    try:
        header = _checked(source, name, state.nbytes)
    except BrokenModel as error:
        found = Finding("model-file", name, str(error), "copy it again, or write the model again")
        return WeightFile(name, state.nbytes, 0, ()), None, found
    file = WeightFile(name, state.nbytes, header.nbytes, tuple(sorted(header.metadata.items())))
    if SHARDING in header.metadata:
        what = "it holds chunks that torch's HuggingFaceStorageWriter saved, not whole weights"
        return file, header, Finding("model-file", name, what, "give the model that was made from them")
    return file, header, None


def header_bytes(source: Source, name: str) -> bytes:
    """The header of a file of a model, with its length field, unchecked.

    Raises
    ------
    BrokenModel
        The file cannot be read, or cannot begin with a header.
    """
    with _broken_model():
        return unchecked(source, name)


def read_headers(model: Model) -> dict[str, bytes]:
    """The headers of all files of a model that have one, by name, read again; raises as ``header_bytes``."""
    announce_headers(model)
    return {file.name: header_bytes(model.source, file.name) for file in model.files if file.header_nbytes}


def announce_headers(model: Model) -> None:
    """Announce that the headers will be read again, if that takes long."""
    if model.source.ahead:
        model.source.will_read((file.name, 0, file.header_nbytes) for file in model.files)


def _checked(source: Source, name: str, nbytes: int) -> Header:
    """The header of a file of that size, the rest of which the values fill."""
    data = header_bytes(source, name)
    with _broken_model():
        header = parse_header(data)
    end = header.nbytes + sum(part.nbytes for part in header.parts.values())
    if end != nbytes:
        raise BrokenModel(f"it has {nbytes:,} bytes, and its header says {end:,}")
    return header


@contextmanager
def _broken_model() -> Iterator[None]:
    try:
        yield
    except Wrong as wrong:
        raise BrokenModel(f"it is not a valid safetensors file: {wrong}") from None
    except BrokenCheckpoint as error:  # of a source
        raise BrokenModel(str(error).partition("\n")[0].removesuffix(".")) from None


def _merged(parts: Mapping[str, Mapping[str, Part]]) -> tuple[dict[str, Weight], list[Finding]]:
    """The weights of all files, and those that are in two."""
    weights: dict[str, Weight] = {}
    findings = []
    for file, found in parts.items():
        for name, part in found.items():
            if name in weights:
                both = f"it is in {weights[name].file} and in {file}"
                findings.append(Finding("model-file", name, both, "remove the file that does not belong here"))
            weights.setdefault(name, Weight(name, part.shape, part.dtype, file, part.start, part.nbytes))
    return weights, findings


def _about_index(index: _Index, weights: Mapping[str, Weight], readable: set[str]) -> Iterator[Finding]:
    """What the index says and the files do not, and vice versa; files that cannot be read are reported separately."""
    if not index.name:
        return
    for name, file in index.weight_map.items():
        if file not in readable:
            continue
        if name not in weights:
            yield _bad_index(name, f"the index says that it is in {file}, but it is not")
        elif weights[name].file != file:
            yield _bad_index(name, f"the index says that it is in {file}, but it is in {weights[name].file}")
    for name in sorted(weights.keys() - index.weight_map.keys()):
        yield _bad_index(name, f"it is in {weights[name].file}, but the index does not name it")
    total = index.metadata.get("total_size")
    if all(file in readable for file in index.weight_map.values()):
        size = sum(weight.nbytes for weight in weights.values())
        if total is not None and total != size:
            yield _bad_index(index.name, f"total_size is {total!r:.200}, but the weights have {size:,} bytes")
        numel = sum(weight.numel for weight in weights.values())
        parameters = index.metadata.get("total_parameters")
        if parameters is not None and parameters != numel:
            yield _bad_index(
                index.name, f"total_parameters is {parameters!r:.200}, but the weights have {numel:,} elements"
            )
