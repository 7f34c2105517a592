"""What dcptools reads is what others read: pickle with inert classes, torch, safetensors, who counts elements."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors
import torch

import dcptools
from dcptools._pickle import Class, Record
from dcptools.checkpoint import metadata as metadata_module
from dcptools.checkpoint.cover import check_cover
from dcptools.errors import DcptoolsError
from dcptools.hf import Model
from dcptools.tensors import arrangement, read_region

from .guard import Violation
from .mutate import pickled_of
from .seeds import METADATA


class Inert:
    """Stands for an instance of any class: it keeps what it is given, and does nothing."""

    name = ""

    def __new__(cls, *_: Any) -> Inert:
        return object.__new__(cls)

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def __setitem__(self, _key: Any, _value: Any) -> None: ...


class _Index(Inert):
    """torch compares its MetadataIndex by name and offset; two of the same are one key."""

    offset: Any = None  # torch's default, which stands in no state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and (self.fqn, self.offset) == (other.fqn, other.offset)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((self.fqn, self.offset))  # type: ignore[attr-defined]


class _Stateful(Inert):
    """torch's TensorProperties has a state that is a tuple."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Python's own machine; all that a pickle can name is inert."""

    def __init__(self, data: bytes, allowed: dict[str, Any], alike: dict[str, Class], persistent: Any = None) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed, self._alike, self._persistent = allowed, alike, persistent
        self.made: dict[str, type[Inert]] = {}
        self.kinds: dict[type[Inert], Class] = {}
        self.foreign: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        known = self._allowed.get(full)
        if full in self._allowed and not isinstance(known, Class):
            return known
        if full not in self._allowed:
            self.foreign.add(full)
        kind = known or self._alike.get(name) or Class(full)
        if kind.name not in self.made:
            base = _Index if name == "MetadataIndex" else _Stateful if name == "TensorProperties" else Inert
            self.made[kind.name] = type("Made", (base,), {})
            self.kinds[self.made[kind.name]] = kind
        return self.made[kind.name]

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def _as_records(value: Any, kinds: dict[type[Inert], Class], done: dict[int, Any]) -> Any:
    """The same with our own records."""
    if id(value) in done:
        return done[id(value)][0]
    if isinstance(value, Inert):
        record = Record(kinds[type(value)])
        done[id(value)] = record, value
        state = vars(value)
        record.state = _as_records(state["state"] if isinstance(value, _Stateful) else dict(state), kinds, done)
        return record
    if type(value) is dict:
        made: dict[Any, Any] = {}
        done[id(value)] = made, value
        made.update((_as_records(k, kinds, done), _as_records(v, kinds, done)) for k, v in value.items())
        return made
    if type(value) is list:
        members: list[Any] = []
        done[id(value)] = members, value
        members += [_as_records(member, kinds, done) for member in value]
        return members
    if type(value) is tuple:
        return tuple(_as_records(member, kinds, done) for member in value)
    return kinds.get(value, value) if isinstance(value, type) else value


def metadata(directory: Path, _file: str) -> str:
    """``.metadata``: what our machine reads of it, and what is read when pickle has built it."""
    data = (directory / METADATA).read_bytes()
    ours = metadata_module.parse(data, "It")
    try:
        unpickler = _Unpickler(data, dict(metadata_module._allowed(data)), dict(metadata_module.ALIKE))
        top = _as_records(unpickler.load(), unpickler.kinds, {})
        theirs = metadata_module._checked(top, ours.foreign, "It", len(data))
    except Exception as error:  # what pickle says is as various as what is wrong
        return f"read by us alone: {type(error).__name__}"
    if repr(ours) != repr(theirs):
        raise Violation(f"pickle reads\n{theirs!r}\nand we read\n{ours!r}"[:3000])
    return "the same"


def item_pickle(directory: Path, file: str) -> str:
    """``data.pkl``: the arrangement, as both build it."""
    data = pickled_of((directory / file).read_bytes())
    ours = arrangement.parse_arrangement(data)
    try:
        unpickler = _Unpickler(data, dict(arrangement._NAMES), {}, arrangement._storage)
        theirs = unpickler.load()
    except Exception as error:
        return f"read by us alone: {type(error).__name__}"
    if ours != theirs:
        raise Violation(f"pickle reads\n{theirs!r}\nand we read\n{ours!r}"[:3000])
    return "the same"


def item(directory: Path, file: str) -> str:
    """An item: the bits that we read, and those of the tensor that ``torch.load(weights_only=True)`` gives."""
    data = (directory / file).read_bytes()
    checkpoint = dcptools.read(directory)
    (tensor,) = checkpoint.tensors.values()
    tensor = replace(tensor, columns=replace(tensor.columns, nbytes=np.array([len(data)])))
    bits = np.empty(tensor.shape, f"u{tensor.dtype.itemsize}")
    refused: DcptoolsError | None = None
    try:
        read_region(tensor, [(0, n) for n in tensor.shape], bits)
    except DcptoolsError as error:
        refused = error
    try:
        theirs = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # as above
        return f"refused by both: {type(refused).__name__}" if refused else f"read by us alone: {type(error).__name__}"
    if refused:
        return f"read by torch alone: {type(refused).__name__}"
    if not isinstance(theirs, torch.Tensor) or str(theirs.dtype) != f"torch.{tensor.dtype.name}":
        raise Violation(f"torch reads {type(theirs)} {getattr(theirs, 'dtype', '')}, and we {tensor.dtype.name}")
    whole = theirs.detach().resolve_conj().resolve_neg().contiguous()
    if tuple(whole.shape) != tensor.shape or whole.view(-1).view(torch.uint8).numpy().tobytes() != bits.tobytes():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if bits.tobytes() in map(archive.read, archive.namelist()):
                return "torch reads what is not stored"  # memory that nothing was read into
        raise Violation(f"torch reads {whole}, and we {bits}")
    return "the same"


def header(path: Path, model: Model) -> None:
    """What we take for sound, the safetensors library does too, and sees the same names, dtypes, shapes and bytes."""
    if model.errors:
        return
    data = path.read_bytes()
    try:
        theirs = dict(safetensors.deserialize(data))
    except Exception as error:
        raise Violation(f"the safetensors library refuses it: {error}") from None
    said = {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in theirs.items()}
    ours = {w.name: (w.dtype.code, w.shape, data[w.start : w.start + w.nbytes]) for w in model.weights.values()}
    if said != ours:
        raise Violation(f"the safetensors library reads\n{said}\nand we\n{ours}"[:3000])


# --- cover: the file is a JSON of a shape and boxes ----------------------------------------------------------------


def tilings(place: Path) -> Any:
    for number, (shape, boxes) in enumerate((
        ((6,), [[[0], [2]], [[2], [4]]]),
        ((4, 6), [[[r, c], [2, 3]] for r in (0, 2) for c in (0, 3)]),
        ((3, 3), [[[0, 0], [1, 2]], [[0, 2], [2, 1]], [[2, 1], [1, 2]], [[1, 0], [2, 1]], [[1, 1], [1, 1]]]),
        ((2, 2, 3), [[[a, 0, c], [1, 2, 1]] for a in (0, 1) for c in (0, 1, 2)]),
    )):  # fmt: skip
        (place / str(number)).mkdir()
        (place / str(number) / "boxes.json").write_text(json.dumps([shape, boxes]))
        yield place / str(number), "boxes.json"


def of_tiling(data: bytes, _others: Sequence[bytes], random: Random) -> bytes:
    """Boxes are moved, resized, cut, joined, repeated and removed."""
    try:
        shape, boxes = json.loads(data)
        box = random.choice(boxes)
        way, dim = random.randrange(6), random.randrange(len(shape))
        box[0][dim] + box[1][dim]
    except (ValueError, IndexError, TypeError):
        return data
    if way == 0:
        box[random.randrange(2)][dim] += random.choice((-1, 1, 2))
    elif way == 1 and box[1][dim] > 1:
        rest = json.loads(json.dumps(box))
        at = random.randrange(1, box[1][dim])
        box[1][dim], rest[0][dim], rest[1][dim] = at, box[0][dim] + at, box[1][dim] - at
        boxes.append(rest)
    elif way == 2:
        boxes.append(json.loads(json.dumps(box)))
    elif way == 3:
        boxes.remove(box)
    elif way == 4:
        random.shuffle(boxes)
    elif len(boxes) < 40:
        shape[dim] = max(1, min(7, shape[dim] + random.choice((-1, 1))))
    return json.dumps([shape, boxes]).encode()


def cover(directory: Path, file: str) -> str:
    """Whether a tensor is covered exactly, and what counting its elements says."""
    try:
        shape, boxes = json.loads((directory / file).read_bytes())
        places = np.array([box[0] for box in boxes], np.int64).reshape(-1, len(shape))
        sizes = np.array([box[1] for box in boxes], np.int64).reshape(-1, len(shape))
        full = tuple(map(int, shape))
    except (ValueError, IndexError, TypeError, OverflowError):
        return "no boxes"
    if not full or max(full) > 7 or len(full) > 4 or len(places) != len(sizes):
        return "no boxes"
    found = check_cover(full, places, sizes)
    distinct = {(tuple(at), tuple(n)) for at, n in zip(places.tolist(), sizes.tolist(), strict=True)}
    outside = any(
        a < 0 or n < 0 or a + n > whole for at, size in distinct for a, n, whole in zip(at, size, full, strict=True)
    )
    if outside and 0 not in full:  # a tensor without elements is covered by anything
        if found is None or found[0] != "overlap":
            raise Violation(f"a box outside of {full} is {found}: {boxes}")
        return "outside"
    times = np.zeros(full, int)
    for at, size in distinct:
        times[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))] += 1
    if (found is None) != bool((times == 1).all()):
        raise Violation(f"{boxes} in {full} are {found}, and counted {times.tolist()}")
    return "covered" if found is None else found[0]
