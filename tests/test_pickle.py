"""Untrusted pickles: nothing of them is run, and what a checkpoint needs is read as pickle reads it."""

from __future__ import annotations

import copyreg
import io
import json
import math
import pickle
import pickletools
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import hostile, saved
from hypothesis import given
from hypothesis import strategies as st

import dcptools
from dcptools._pickle import Class, Record, loads, size
from dcptools.errors import BrokenCheckpoint, DcptoolsError, UnsafeMetadata

WHAT = "The pickle"


def load(data: bytes, **allowed: Any) -> Any:
    return loads(data, what=WHAT, allowed={name.replace("__", "."): value for name, value in allowed.items()})[0]


def pickle_of(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


# --- nothing is run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*hostile.RUNNERS, "extension"])
def test_runners_do_not_run(name: str, tmp_path: Path) -> None:
    marker = hostile.runner(tmp_path / "a", name)
    with pytest.raises(DcptoolsError):
        value = load((tmp_path / "a" / ".metadata").read_bytes())
        assert isinstance(value, Record)  # an inert value, of a function that was neither imported nor called
        raise BrokenCheckpoint
    assert not marker.exists()


def test_a_registered_extension_is_not_reached(tmp_path: Path) -> None:
    """Once it is in copyreg's cache, Python's unpickler calls it without asking ``find_class``."""
    marker = hostile.runner(tmp_path / "a", "extension")
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(b"\x80\x02\x82\xf0.")  # into the cache
        with pytest.raises(UnsafeMetadata):
            load((tmp_path / "a" / ".metadata").read_bytes())
    finally:
        copyreg.remove_extension("os", "system", 240)
    assert not marker.exists()


def test_a_named_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainer_of_mine.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    value = load(pickle_of(hostile.stack_global("trainer_of_mine", "Config"), b")R"))
    assert isinstance(value, Record)
    assert "trainer_of_mine" not in sys.modules
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("importlib", "import_module"),
        ("os.path", "join"),
        ("torch", "serialization.os.system"),
        ("torch.serialization", "os.system"),
    ],
)
def test_the_standard_library_and_attributes_of_torch_modules_are_refused(module: str, name: str) -> None:
    with pytest.raises(UnsafeMetadata) as caught:
        load(pickle_of(hostile.stack_global(module, name)))
    assert str(caught.value) == (
        f"The pickle asks for {module}.{name}, which no checkpoint needs.\n"
        "It was not imported, and nothing was run. Do not load this file with torch either."
    )


def test_the_name_in_the_message_is_short_and_cannot_drive_a_terminal() -> None:
    with pytest.raises(UnsafeMetadata) as caught:
        load(pickle_of(hostile.stack_global("os", "\x1b[2J" + 100_000 * "x")))
    assert str(caught.value).isprintable() is False  # the line break
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_allowed_name_is_exact() -> None:
    assert load(pickle_of(hostile.stack_global("torch", "Size"), b"K\x03\x85\x85R"), torch__Size=size) == (3,)
    with pytest.raises(UnsafeMetadata):
        load(pickle_of(hostile.stack_global("torch", "Size.__init__")), torch__Size=size)


def test_persistent_ids_are_refused_unless_the_caller_knows_them() -> None:
    with pytest.raises(UnsafeMetadata, match="The pickle has a persistent id, which does not belong there."):
        load(hostile.persistent_id())
    value, foreign = loads(hostile.persistent_id(), what=WHAT, allowed={}, persistent=lambda pid: [pid])
    assert (value, foreign) == (["storage"], ())


def test_only_what_was_handed_over_is_called() -> None:
    called: list[Any] = []
    assert load(pickle_of(hostile.stack_global("a", "f"), b"K\x03\x85R"), a__f=called.append) is None
    assert called == [3]
    for what in (b"N", b"K\x01", hostile.text("print"), b"]", b"}"):
        with pytest.raises(BrokenCheckpoint, match="is called"):
            load(pickle_of(what, b")R"))


# --- foreign classes --------------------------------------------------------------------------------------------


class Foreign:
    """Pickled, it has arguments, a state, items and list members."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Foreign, (1,), {"a": 2}, iter([3, 4]), iter([(5, 6)])


class ForeignSet(set[int]):
    def __reduce__(self) -> tuple[Any, ...]:
        return ForeignSet, (), None, iter([1])


def test_foreign_classes_become_inert_records_and_are_named() -> None:
    data = pickle.dumps({"x": Foreign(), "y": [ForeignSet(), ForeignSet], "z": 1}, protocol=4)
    value, foreign = loads(data, what=WHAT, allowed={})
    assert foreign == ("test_pickle.Foreign", "test_pickle.ForeignSet")
    assert (type(value["x"]), value["x"].kind.name, value["x"].state) == (Record, "test_pickle.Foreign", None)
    assert [type(each) for each in value["y"]] == [Record, Class]
    assert value["z"] == 1


class Twin:
    """A class of a trainer's own that says the same as a class that is known."""

    def __init__(self) -> None:
        self.offset = 7


def test_a_class_that_is_alike_stands_for_a_known_one_and_is_foreign_all_the_same() -> None:
    known = Class("theirs.Twin")
    data = pickle.dumps([Twin(), Twin(), Foreign()], protocol=4)
    value, foreign = loads(data, what=WHAT, allowed={}, alike={"Twin": known})
    assert foreign == ("test_pickle.Foreign", "test_pickle.Twin")
    assert [each.kind is known for each in value] == [True, True, False]
    assert [each.state for each in value] == [{"offset": 7}, {"offset": 7}, None]


def test_a_class_of_the_standard_library_is_never_alike() -> None:
    data = hostile.stack_global("os", "Twin")
    with pytest.raises(UnsafeMetadata, match=r"asks for os\.Twin"):
        loads(pickle_of(data), what=WHAT, allowed={}, alike={"Twin": Class("theirs.Twin")})


def test_a_class_cannot_be_given_attributes_that_stay() -> None:
    with pytest.raises(BrokenCheckpoint, match=r"mine\.Config is given a state"):
        load(pickle_of(hostile.stack_global("mine", "Config"), b"N}", hostile.text("x"), b"K\x01s\x86b"))
    assert not hasattr(Class, "x")


def test_plain_values_of_the_standard_library_are_records_too() -> None:
    data = pickle.dumps({"cut": slice(1, 2), "also": io.BytesIO(b"x")}, protocol=4)
    value, foreign = loads(data, what=WHAT, allowed={})
    assert foreign == ("_io.BytesIO", "builtins.slice")
    assert all(isinstance(each, Record) for each in value.values())


# --- opcodes ---------------------------------------------------------------------------------------------------

ADMITTED = """
    ADDITEMS APPEND APPENDS BINBYTES BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINSTRING BINUNICODE BUILD
    DICT EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE FRAME FROZENSET GLOBAL LIST LONG1 LONG_BINGET LONG_BINPUT MARK
    MEMOIZE NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINBYTES SHORT_BINSTRING SHORT_BINUNICODE
    STACK_GLOBAL STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""


def _operand(opcode: pickletools.OpcodeInfo) -> bytes:
    """A number of zero, or an empty string."""
    if opcode.arg is None or opcode.arg.n == pickletools.UP_TO_NEWLINE:
        return b"a\nb\n" if opcode.arg else b""
    of_length = {
        "TAKEN_FROM_ARGUMENT1": 1,
        "TAKEN_FROM_ARGUMENT4": 4,
        "TAKEN_FROM_ARGUMENT4U": 4,
        "TAKEN_FROM_ARGUMENT8U": 8,
    }
    counted = {getattr(pickletools, name): size for name, size in of_length.items()}
    return b"\0" * counted.get(opcode.arg.n, opcode.arg.n)


def test_these_opcodes_are_admitted_and_no_others() -> None:
    admitted = []
    for opcode in pickletools.opcodes:
        try:
            load(pickle_of(opcode.code.encode("latin-1"), _operand(opcode)))
        except DcptoolsError as error:  # alone, most make no sense
            if "an instruction that no checkpoint needs" not in str(error):
                admitted.append(opcode.name)
        else:
            admitted.append(opcode.name)
    assert sorted(admitted) == ADMITTED.split()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.integers(3, 5))  # protocol 2 has no opcode for bytes
def test_plain_values_come_back_as_they_were(value: Any, protocol: int) -> None:
    assert load(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_long_texts_and_many_values_pass(protocol: int) -> None:
    value = {"a": "x" * 70_000, "b": list(range(-300, 70_000, 7)), "c": [2.5] * 1000, "t" * 300: "\x85\x86\x87t" * 90}
    assert load(pickle.dumps(value, protocol=protocol)) == value


def test_names_that_look_like_nested_tuples_pass() -> None:
    """Bytes of texts and numbers are no opcodes: ``t`` is TUPLE, and UTF-8 is full of 0x85 to 0x87."""
    value = {"tttttttttttt": "\u0145\u0146\u0147" * 20, "n": [0x74747474] * 20, "m": 0x8686}
    assert load(pickle.dumps(value, protocol=4)) == value


def test_tuples_of_shared_texts_pass() -> None:
    """The planner_data of bare names: each is stored once, and a tuple of one follows the other."""
    names = [f"layers.{n}.weight" for n in range(1000)]
    value = [names, {name: (name,) for name in names}, {name: (name, name) for name in names}, [(n,) for n in names]]
    assert load(pickle.dumps(value, protocol=4)) == value


def _nested(depth: int, around: Any) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = around(value)
    return value


AROUND = {
    "one": lambda value: (value,),
    "two": lambda value: (value, 7),
    "twice": lambda value: (value, value),
    "thrice": lambda value: (value, value, None),
    "many": lambda value: (value, 1, True, 70_000, "x", value),
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("protocol", [2, 4])
def test_tuples_nested_deeper_than_any_checkpoint_does_are_refused(name: str, protocol: int) -> None:
    assert load(pickle.dumps(_nested(4, AROUND[name]), protocol=protocol)) == _nested(4, AROUND[name])
    with pytest.raises(UnsafeMetadata, match="nests tuples more deeply than any checkpoint does"):
        load(pickle.dumps(_nested(40, AROUND[name]), protocol=protocol))


def test_messages() -> None:
    def message(data: bytes) -> str:
        with pytest.raises(BrokenCheckpoint) as caught:
            load(data)
        return str(caught.value)

    nothing_run = "\nIt was not loaded, and nothing of it was run."
    refused = "The pickle is refused: at byte 3 is b'r', an instruction that no checkpoint needs." + nothing_run
    assert message(hostile.long_binput()) == refused
    nested = "The pickle is refused: at byte 11 it nests tuples more deeply than any checkpoint does." + nothing_run
    assert message(hostile.nested_value(20)) == nested
    key = "The pickle is refused: at byte 107 a key is a larger tuple than any checkpoint has there." + nothing_run
    assert message(b"\x80\x04}(" + 101 * b"N" + b"tNs") == key
    assert "a key is a larger tuple than any checkpoint has there" in message(
        hostile.wide_keys_in_keys(members=4, depth=4)
    )
    assert "cannot be unpickled" not in message(hostile.wide_keys_in_keys())
    assert (
        message(b"<!DOCTYPE html><html>...")
        == "The pickle is not a pickle: it starts with b'<!DOCTYPE html><html>...'."
    )
    assert message(b"\x80\x04\x8c\x05mod") == "The pickle ends in the middle of a value: it is truncated."
    assert message(b"\x80\x04K\x01") == "The pickle has no end: it is truncated."
    assert message(b"\x80\x02X\xff\xff\xff\x00abc.") == "The pickle ends in the middle of a value: it is truncated."
    assert message(b"\x80\x02N.abc") == "The pickle goes on after its end: 3 bytes too many."
    assert message(b"\x80\x02(K\x01K\x02K\x03d.").startswith(
        "The pickle cannot be unpickled: zip() argument 2 is shorter"
    )


def test_wherever_a_metadata_file_is_cut_it_is_called_truncated(tmp_path: Path) -> None:
    directory = saved.trained(tmp_path, saved.model_state(layers=1), optimizer=False)
    data = (directory / ".metadata").read_bytes()
    for end in range(1, len(data)):
        (directory / ".metadata").write_bytes(data[:end])
        with pytest.raises(BrokenCheckpoint, match="truncated|not a pickle") as caught:
            dcptools.read(directory)
        assert type(caught.value) is BrokenCheckpoint, end


# --- memory, time and the stack ---------------------------------------------------------------------------------

READ_ALL = """
import contextlib, io, json, sys, time
import dcptools
from dcptools import cli

def as_json(command):
    def printed(path):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main_group.main([command, path, "--json"], standalone_mode=False)
        return out.getvalue()
    return printed

for path in sys.argv[1:]:
    start, outcomes, longest = time.process_time(), [], 0
    for step in (dcptools.read, dcptools.inspect, dcptools.preview, as_json("inspect"), as_json("preview")):
        try:
            shown = str(step(path))
            outcomes.append("read")
        except dcptools.DcptoolsError as error:
            shown = str(error)
            outcomes.append(type(error).__name__)
            longest = max(longest, len(shown))
    print(json.dumps([path.rpartition("/")[2], outcomes, longest, time.process_time() - start]), flush=True)
"""


def read_all(paths: list[Path]) -> Iterator[tuple[str, list[str], int, float]]:
    """The name of each directory, what came of it, characters of the longest error, and seconds.

    In one child, which a crash would end and a limit of memory would show.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", READ_ALL, *map(str, paths)]
    done = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    return map(json.loads, done.stdout.splitlines())


def test_eaters_get_no_memory_no_time_and_no_stack(tmp_path: Path) -> None:
    found = list(read_all([hostile.checkpoint(tmp_path / name, make()) for name, make in hostile.EATERS.items()]))
    assert {name: set(outcomes) for name, outcomes, _, _ in found} == {
        name: {"BrokenCheckpoint" if name in BROKEN else "UnsafeMetadata"} for name in hostile.EATERS
    }
    assert max(longest for _, _, longest, _ in found) < 2000
    assert math.fsum(seconds for _, _, _, seconds in found) < 20


BROKEN = {"text_put", "frame", "doubling_path", "cycle", "many_paths", "wide_path"}


def test_a_little_does_not_become_much(tmp_path: Path) -> None:
    makers = hostile.MULTIPLIERS.items()
    found = list(read_all([hostile.checkpoint(tmp_path / name, make()) for name, make in makers]))
    assert {name: set(outcomes) for name, outcomes, _, _ in found} == {
        "repeated_root": {"read"},
        "repeated_path": {"read"},
        "path_of_large_integers": {"read"},
        "joined_transforms": {"BrokenCheckpoint"},
        "many_corners": {"read"},
        "many_tensors_of_many_corners": {"read"},
        "shared_chunk": {"BrokenCheckpoint"},
        "shared_chunks": {"BrokenCheckpoint"},
        "colliding_offsets": {"BrokenCheckpoint"},
        "colliding_chunks": {"BrokenCheckpoint"},
        "unallocatable": {"BrokenCheckpoint"},
        "long_message": {"BrokenCheckpoint"},
    }
    assert max(longest for _, _, longest, _ in found) < 4000
    assert math.fsum(seconds for _, _, _, seconds in found) < 20


def test_the_parts_of_a_path_are_counted_before_they_are_joined(tmp_path: Path) -> None:
    directory = hostile.checkpoint(tmp_path, hostile.wide_path(characters=10_000, times=10_000))
    tracemalloc.start()
    try:
        with pytest.raises(BrokenCheckpoint, match="paths of the same parts"):
            dcptools.read(directory)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


# --- what is read is what torch reads ---------------------------------------------------------------------------


def test_a_state_that_is_changed_afterwards_is_another_one(tmp_path: Path) -> None:
    """pickle copies a state into the instance; what is set in it later, through the memo, is not the instance's."""
    state = b"}" + hostile.text("value") + b"K\x01s" + b"q\x00"
    kind = hostile.stack_global("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata")
    later = b"h\x00" + hostile.text("value") + b"K\x02s"
    data = b"\x80\x04(" + kind + b")\x81" + state + b"b" + later + b"t."
    chunk = Class("torch.distributed.checkpoint.metadata.ChunkStorageMetadata")
    (record, changed), _ = loads(data, what="It", allowed={chunk.name: chunk})
    assert (record.state, changed) == ({"value": 1}, {"value": 2})
