"""Changes of files that leave most of their form: opcodes of a pickle, fields of an archive, values of JSON."""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from tests.checkpoints.hostile import stack_global
from tests.checkpoints.hostile_items import Part, archive

Mutator = Callable[[bytes, Sequence[bytes], Random], bytes]
"""A file, other files of its class, and chance give a file."""

MARKUP = ("<img src=x onerror=alert(1)>", "'\"><script>alert(1)</script>", "</td></table><h1>", "&lt;b&gt;")
CONTROL = ("\x1b[2J\x1b[31mred", "\x9b2J", "\u202emoc.live", "a\rb", "a\nb", "\x00", "\x07", "\x7f")
PATHS = ("../secret", "/etc/passwd", "a/../../secret", "..", ".", "", "con", "~/x", "C:\\x", "..\\secret", "x" * 300)
NAMES = (
    "model.w", "model.layers.0.mlp.up_proj.weight", "optimizer.state", "data/0", "data/1", "little", "big", "storage",
    "__metadata__", "format", "model.safetensors", "weight_map", "\ud800", "é" * 50, "0", "-1", "None", "x" * 5000,
)  # fmt: skip
TEXTS = (*MARKUP, *CONTROL, *PATHS, *NAMES)
INTEGERS = (
    0, 1, 2, 3, 8, -1, 255, 256, 1 << 15, (1 << 16) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 61,
    (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**400,
)  # fmt: skip


def pick_text(random: Random) -> str:
    return random.choice(TEXTS)


# --- bytes --------------------------------------------------------------------------------------------------------


def of_bytes(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Flips, cuts, repetitions and pieces of other files: for what no other mutator would do."""
    at, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    end = min(end, at + random.choice((1, 4, 64)))
    other = random.choice(others) if others else b""
    start = random.randrange(len(other) + 1)
    return random.choice((
        data[:at] + bytes([random.randrange(256)]) + data[at + 1 :],
        data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :] if at < len(data) else data,
        data[:at] + random.randbytes(random.randrange(1, 9)) + data[at:],
        data[:at] + data[end:],
        data[:at],
        data[:end] + data[at:end] * random.choice((1, 2, 50)) + data[end:],
        data[:at] + other[start : start + random.choice((4, 30, 300))] + data[end:],
    ))  # fmt: skip


# --- pickles ------------------------------------------------------------------------------------------------------

_GLOBALS = (
    ("torch", "Size"), ("torch", "float32"), ("torch", "bfloat16"), ("torch", "FloatStorage"),
    ("collections", "OrderedDict"), ("builtins", "getattr"), ("builtins", "slice"), ("builtins", "eval"),
    ("os", "system"), ("canary_of_fuzzing", "run"), ("pathlib", "PosixPath"), ("mine", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"), ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"), ("torch._utils", "_rebuild_parameter"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"), ("torch._utils", "_rebuild_tensor_v3"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.distributed.checkpoint.metadata", "os.system"), ("torch.storage", "UntypedStorage"),
    ("torch.storage", "_load_from_bytes"),
)  # fmt: skip
_PLAIN = (
    b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"(", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87", b"t", b"l",
    b"d", b"a", b"e", b"s", b"u", b"\x90", b"\x91", b"R", b"\x81", b"b", b"\x94", b"\x93", b"Q", b".", b"h\x00",
    b"q\x00", b"j\xff\0\0\0", b"r\x01\0\0\0", b"\x82\x01", b"\x92", b"G\x7f\xf8\0\0\0\0\0\0",
    b"\x95\xff\0\0\0\0\0\0\0",
)  # fmt: skip


def integer(value: int) -> bytes:
    """An opcode that puts it onto the stack."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


def _snippet(random: Random) -> bytes:
    kind = random.randrange(5)
    if kind == 0:
        return text_op(pick_text(random))
    if kind == 1:
        return integer(random.choice(INTEGERS))
    if kind == 2:
        return stack_global(*random.choice(_GLOBALS))
    if kind == 3:
        return b"h" + bytes([random.randrange(256)])
    return random.choice(_PLAIN)


def text_op(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def opcodes(data: bytes) -> list[bytes]:
    """The opcodes with their operands; the last one is the rest, where the pickle makes no sense."""
    places: list[int] = []
    with contextlib.suppress(Exception):  # whatever pickletools says of a damaged one
        places.extend(at or 0 for _, _, at in pickletools.genops(data))
    return [data[start:end] for start, end in pairwise([*(places or [0]), len(data)])]


def of_pickle(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Opcodes are removed, repeated, exchanged, moved, taken of other pickles, and given other operands."""
    codes = opcodes(data)
    if random.random() < 0.9:  # they say how long the rest is, and would only be wrong
        codes = [code for code in codes if not (code[:1] == b"\x95" and len(code) == 9)]
    for _ in range(random.choice((1, 1, 1, 1, 2))):
        at = random.choice(_with_operands(codes)) if random.random() < 0.5 else 0
        if at:
            codes[at] = _other_operand(codes[at], random)
            continue
        at = random.randrange(1, len(codes)) if len(codes) > 1 else 0
        end = min(len(codes) - 1, at + random.choice((1, 1, 2, 5, 20)))
        way = random.randrange(8)
        if way == 0:
            del codes[at:end]
        elif way == 1:
            codes[at:at] = codes[at:end] * random.choice((1, 1, 2, 30))
        elif way == 2:
            other = random.randrange(len(codes))
            codes[at], codes[other] = codes[other], codes[at]
        elif way == 3:
            to = random.randrange(1, len(codes)) if len(codes) > 1 else 0
            codes[to:to] = codes[at:end]
        elif way == 4 and others:
            theirs = opcodes(random.choice(others))
            start = random.randrange(len(theirs))
            codes[at:at] = theirs[start : start + random.choice((1, 3, 10, 40))]
        elif way == 5:
            codes[at:at] = [_snippet(random)]
        else:
            codes[at] = _other_operand(codes[at], random)
    return b"".join(codes)


def _with_operands(codes: Sequence[bytes]) -> list[int]:
    """Where a value may be another one, and all around it stays; 0 if nowhere."""
    return [at for at, code in enumerate(codes) if at and code[:1] in b"X\x8cUTKMJ\x8aGhjc"] or [0]


def _other_operand(code: bytes, random: Random) -> bytes:
    """The same kind of value, or the same opcode, with another operand."""
    first = code[:1]
    if first in (b"X", b"\x8c", b"U", b"T"):
        return text_op(pick_text(random))
    if first in (b"K", b"M", b"J", b"\x8a"):
        return integer(random.choice(INTEGERS) if random.random() < 0.5 else random.randrange(-3, 20))
    if first in (b"c",):
        return stack_global(*random.choice(_GLOBALS))
    if len(code) > 1:
        at = random.randrange(1, len(code))
        return code[:at] + bytes([random.randrange(256)]) + code[at + 1 :]
    return _snippet(random)


# --- items --------------------------------------------------------------------------------------------------------

_RECORDS = {b"PK\x03\x04": "<4s5H3L2H", b"PK\x01\x02": "<4s6H3L5H2L", b"PK\x05\x06": "<4s4H2LH",
            b"PK\x06\x06": "<4sQ2H2L4Q", b"PK\x06\x07": "<4sLQL"}  # fmt: skip


def of_archive(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Fields of the zip format get other values, or the archive is put together anew of other parts."""
    if random.random() < 0.5:
        found = list(re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06|\x06\x06|\x06\x07)", data))
        if not found:
            return of_bytes(data, others, random)
        match = random.choice(found)
        record = struct.Struct(_RECORDS[match[0]])
        if match.start() + record.size > len(data):
            return of_bytes(data, others, random)
        fields = list(record.unpack_from(data, match.start()))
        at = random.randrange(1, len(fields))
        widths = [code for count, code in re.findall(r"(\d*)([HLQ])", record.format) for _ in range(int(count or 1))]
        nbytes = struct.calcsize(f"<{widths[at - 1]}")
        value = random.choice((fields[at] + random.choice((-1, 1, 4, 46)), random.choice(INTEGERS), len(data)))
        fields[at] = value % (1 << 8 * nbytes)
        return data[: match.start()] + record.pack(*fields) + data[match.start() + record.size :]
    parts = _parts_of(data)
    return _other_parts(parts, random) if parts else of_bytes(data, others, random)


def _parts_of(data: bytes) -> list[Part]:
    """The entries of an archive, whatever their checksums say; none of a damaged one."""
    parts = []
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as file:  # of zipfile and what it calls
        for name in file.namelist():
            with file.open(name) as entry:
                entry._expected_crc = None  # type: ignore[attr-defined]
                parts.append(Part(name, entry.read()))
    return parts


def _other_parts(parts: list[Part], random: Random) -> bytes:
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(parts))
        name, content = parts[at]
        way = random.randrange(6)
        if way == 0:
            del parts[at]
        elif way == 1:
            parts.insert(random.randrange(len(parts) + 1), Part(name, of_bytes(content or b"x", (), random)))
        elif way == 2:
            other = random.choice((name.upper(), name + "x", "archive/" + pick_text(random)[:99]))
            parts[at] = Part(other.replace("\ud800", "?"), content)
        elif way == 3:
            random.shuffle(parts)
        elif way == 4 and name.endswith(".pkl"):
            parts[at] = Part(name, of_pickle(content, (), random))
        else:
            parts[at] = Part(name, of_bytes(content or b"x", (), random))
        if not parts:
            break
    return archive(parts)


def of_item_pickle(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Only ``data.pkl`` is another one."""
    parts, theirs = [part for part in _parts_of(data) if "data" in part.name], [pickled_of(other) for other in others]
    if not parts:
        return of_bytes(data, others, random)
    return archive([
        Part(p.name, of_pickle(p.content, theirs, random)) if p.name.endswith("data.pkl") else p for p in parts
    ])  # fmt: skip


def pickled_of(item: bytes) -> bytes:
    """The ``data.pkl`` of an item; nothing where there is none."""
    return next((part.content for part in _parts_of(item) if part.name.endswith("data.pkl")), b"")


# --- JSON and what looks like it ----------------------------------------------------------------------------------


def _value(random: Random) -> Any:
    return random.choice((
        None, True, False, {}, [], [[]], 0.5, float("nan"), 1e400, [0, 8], {"a": 1}, ["U8"], [[1]] * 3,
        random.choice(INTEGERS), pick_text(random), [pick_text(random)], {pick_text(random): pick_text(random)},
        [random.choice(INTEGERS)] * random.choice((1, 2, 65, 500)),
    ))  # fmt: skip


def _places_in(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each container with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        _places_in(value[key], found)
    return found


def of_json(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Values and names are exchanged for others, removed, repeated, and nested."""
    try:
        value = json.loads(data)
        places = _places_in(value, [])
    except (ValueError, RecursionError):
        return of_bytes(data, others, random)
    for _ in range(random.choice((1, 1, 2, 5))):
        if not places:
            return json.dumps(_value(random)).encode()
        container, key = random.choice(places)
        if (isinstance(container, list) and key >= len(container)) or (
            isinstance(container, dict) and key not in container
        ):
            continue
        way = random.randrange(5)
        if way == 0:
            del container[key]
        elif way == 1 and isinstance(container, dict):
            container[pick_text(random)] = container.pop(key) if random.random() < 0.5 else container[key]
        elif way == 2:
            other_container, other_key = random.choice(places)
            if isinstance(other_container, dict) and other_key in other_container:
                container[key] = json.loads(json.dumps(other_container[other_key]))
        elif way == 3 and type(container[key]) is int:
            container[key] += random.choice((-8, -1, 1, 8))
        else:
            container[key] = _value(random)
    return _odd_form(json.dumps(value, ensure_ascii=random.random() < 0.5), random)


def _odd_form(said: str, random: Random) -> bytes:
    """Mostly as it is; sometimes with a name twice, deeply nested, in another encoding, or padded."""
    way = random.randrange(30)
    if way == 0 and ":" in said:
        at = said.index(":")
        start = said.rindex('"', 0, at - 1) if '"' in said[: at - 1] else 0
        return (said[:start] + said[start:at] + ":0," + said[start:]).encode("utf-8", "surrogatepass")
    if way == 1:
        return said.replace(":", ":" + "[" * random.choice((10, 5000)), 1).encode("utf-8", "surrogatepass")
    if way == 2:
        return said.encode(random.choice(("utf-16", "utf-32-le", "utf-8-sig")), "surrogatepass")
    if way == 3:
        return b" " * random.randrange(9) + said.encode("utf-8", "surrogatepass") + b" " * random.randrange(9)
    if way == 4:
        return re.sub(r"\d+", "1" * random.choice((5, 5000)), said, count=1).encode("utf-8", "surrogatepass")
    return said.encode("utf-8", "surrogatepass")


def of_header(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """The JSON of a safetensors header, with a length that is mostly right again."""
    nbytes = int.from_bytes(data[:8], "little")
    said, values = data[8 : 8 + nbytes], data[8 + nbytes :]
    theirs = [other[8 : 8 + int.from_bytes(other[:8], "little")] for other in others[:5]]
    if random.random() < 0.3 and b"DCP_SHARDING_INFO" in said:
        said = _other_sharding(said, random)
    else:
        said = of_json(said, theirs, random)
    length = len(said) if random.random() < 0.95 else random.choice(INTEGERS[:21]) % (1 << 64)
    if random.random() < 0.1:
        values = values[: random.randrange(len(values) + 1)]
    return length.to_bytes(8, "little") + said + values


def _other_sharding(said: bytes, random: Random) -> bytes:
    try:
        header = json.loads(said)
        info = header["__metadata__"]["DCP_SHARDING_INFO"].encode()
        header["__metadata__"]["DCP_SHARDING_INFO"] = of_json(info, (), random).decode("utf-8", "replace")
        return json.dumps(header).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return of_json(said, (), random)


_WORDS = (
    "[", "]", "{", "}", "=", '"', "'", "#", "\\", "->", "(", ")", "{layer}", "{expert}", "a b -> b a",
    "(a b) c -> c b a", "{ name = 'x', rearrange = 'a -> a' }", "[weights]", "[sizes]", "[[weights]]", "differ",
    "1e999", "0x", "-1", "0", "nan", "1979-05-27", "true", '"""', "*", "+", "?", ".", "|", "^", "$", "\\1", "\\g<1>",
    "\\g<x>", "(?P<x>", "(?:", "(?=", "{3}", "{1,99}", "[^a]", "\\d", "\\Z", "(?i)", "\\N{DIGIT ONE}", "\\u0041",
    "99" * 30, "\n", "\r\n", "\t",
)  # fmt: skip


def of_text(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Lines and words are removed, repeated, exchanged, and taken of other files."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(lines))
        way = random.randrange(6)
        if way == 0 and len(lines) > 1:
            del lines[at]
        elif way == 1:
            lines.insert(at, random.choice(lines))
        elif way == 2 and others:
            lines.insert(at, random.choice(random.choice(others).decode("utf-8", "surrogateescape").split("\n")))
        else:
            words = re.split(r"(\W)", lines[at])
            word = random.randrange(len(words))
            words[word] = random.choice(
                (random.choice(_WORDS), random.choice(_WORDS), pick_text(random), "", words[word] * 2)
            )
            lines[at] = "".join(words)
    return "\n".join(lines).encode("utf-8", "surrogatepass" if random.random() < 0.1 else "replace")


def mutated(data: bytes, others: Sequence[bytes], mutator: Mutator, random: Random) -> bytes:
    """Mostly by its own mutator, sometimes by bytes."""
    for _ in range(random.choice((1, 1, 1, 2))):
        data = (of_bytes if random.random() < 0.08 or not data else mutator)(data, others, random)
    return data
