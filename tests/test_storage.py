"""Where bytes come from and go to: right at any place, few open files, and nothing visible before it is whole."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpoints import broken, saved
from safetensors.torch import load_file

import dcptools
from dcptools.errors import BrokenCheckpoint
from dcptools.storage import TEMPORARY, LocalSink, LocalSource, ahead
from dcptools.storage import sink as sink_module
from dcptools.storage import source as source_module


def read(source: LocalSource, name: str, start: int, nbytes: int) -> bytes:
    out = bytearray(nbytes)
    source.read_into(name, start, memoryview(out))
    return bytes(out)


def content(number: int, nbytes: int = 5000) -> bytes:
    return random.Random(number).randbytes(nbytes)


@pytest.fixture
def source(tmp_path: Path) -> LocalSource:
    for number in range(10):
        (tmp_path / f"__{number}_0.distcp").write_bytes(content(number))
    return LocalSource(tmp_path)


def open_below(directory: Path) -> list[str]:
    """The names of the files in that directory that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
        except OSError:  # it was the descriptor of the listing itself
            continue
        if target.parent == directory:
            found.append(target.name)
    return sorted(found)


proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc, which is Linux")


# --- source -----------------------------------------------------------------------------------------------------


def test_any_range_is_read(source: LocalSource) -> None:
    for start, nbytes in ((0, 5000), (0, 1), (4999, 1), (1234, 777), (17, 0), (5000, 0)):
        assert read(source, "__3_0.distcp", start, nbytes) == content(3)[start : start + nbytes]


def test_reading_fills_the_given_buffer_and_no_more(source: LocalSource) -> None:
    buffer = bytearray(b"-" * 12)
    source.read_into("__1_0.distcp", 100, memoryview(buffer)[4:8])
    assert bytes(buffer) == b"----" + content(1)[100:104] + b"----"


def test_short_reads_are_continued(source: LocalSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may give less than was asked for: on Linux at most 2 GiB at a time."""
    whole: Any = source_module._read_at
    monkeypatch.setattr(source_module, "_read_at", lambda descriptor, start, out: whole(descriptor, start, out[:7]))
    assert read(source, "__2_0.distcp", 10, 100) == content(2)[10:110]


def test_sizes(source: LocalSource, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "__0_0.distcp")
    names = ("__0_0.distcp", "link", "absent", "folder", "__0_0.distcp/below")
    states = [source.state(name) for name in names]
    assert [state.nbytes if state else None for state in states] == [5000, 5000, None, None, None]


def test_a_file_that_is_written_to_or_replaced_is_another(source: LocalSource, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"0123456789")
    seen = [source.state("b")]

    def look() -> None:
        state = source.state("b")
        assert state and state.identity not in [other.identity for other in seen if other]
        seen.append(state)

    os.utime(tmp_path / "b", ns=(0, 1_000_000_000))
    look()
    assert seen[-1] and seen[-1].modified_ns == 1_000_000_000
    (tmp_path / "b").write_bytes(b"9876543210")
    look()
    shutil.copy2(tmp_path / "b", tmp_path / "c")
    (tmp_path / "c").replace(tmp_path / "b")
    look()
    assert source.state("b") == seen[-1]


def test_it_is_called_by_its_path(source: LocalSource, tmp_path: Path) -> None:
    assert source.location == str(tmp_path)


def test_a_file_that_ends_before_what_is_wanted(source: LocalSource, tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="__0_0.distcp ends at byte 5,000, 3,500 bytes too early"):
        read(source, "__0_0.distcp", 8000, 500)


def test_a_file_that_ends_too_early(source: LocalSource, tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint) as caught:
        read(source, "__0_0.distcp", 4000, 2500)
    assert str(caught.value) == (
        f"{tmp_path}/__0_0.distcp ends at byte 5,000, 1,500 bytes too early.\n"
        "The file is truncated, or still being written. Copy the checkpoint again."
    )


@pytest.mark.parametrize(("name", "why"), [("absent", "No such file or directory"), ("folder", "Is a directory")])
def test_a_file_that_cannot_be_read(name: str, why: str, source: LocalSource, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BrokenCheckpoint) as caught:
        read(source, name, 0, 1)
    assert str(caught.value) == (
        f"{tmp_path}/{name} cannot be read: {why}.\n"
        "Check that it exists and that you may read it; otherwise copy it again."
    )


def without_waiting(do: Callable[[], Any], pipe: Path) -> Exception | None:
    """What it raises, if it does not wait for somebody who writes into the pipe."""
    raised: list[Exception | None] = []

    def run() -> None:
        try:
            do()
        except Exception as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    waits = thread.is_alive()
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # lets it go on
    thread.join()
    os.close(writer)
    assert not waits
    return raised[0]


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_refused_and_not_waited_for(linked: bool, source: LocalSource, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    name = "link" if linked else "pipe"
    error = without_waiting(lambda: read(source, name, 0, 1), tmp_path / "pipe")
    assert isinstance(error, BrokenCheckpoint)
    assert str(error) == (
        f"{tmp_path}/{name} cannot be read: It is a pipe, a device or the like, not a file.\n"
        "Check that it exists and that you may read it; otherwise copy it again."
    )
    assert open_below(tmp_path) == []


@pytest.mark.parametrize("look", [lambda path: dcptools.load_tensor(path, broken.W), dcptools.stats])
def test_a_pipe_instead_of_a_file_of_a_checkpoint(look: Callable[[Path], Any], tmp_path: Path) -> None:
    pipe = broken.whole(tmp_path) / "__0_0.distcp"
    pipe.unlink()
    os.mkfifo(pipe)
    error = without_waiting(lambda: look(tmp_path), pipe)
    assert isinstance(error, BrokenCheckpoint) and "It is a pipe, a device or the like" in str(error)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux has /proc")
def test_of_a_file_that_the_kernel_makes_up_no_more_is_read_than_it_says_to_have(tmp_path: Path) -> None:
    """``/proc/kmsg`` keeps who reads it waiting; this one would be there at once."""
    (tmp_path / ".metadata").symlink_to("/proc/self/environ")
    with pytest.raises(BrokenCheckpoint, match=r"\.metadata is empty"):
        dcptools.read(tmp_path)


@proc
def test_what_is_kept_open_is_closed_when_there_are_too_many_files(
    source: LocalSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else in the process has nearly all of its descriptors."""
    open_file = os.open

    def few(path: Any, *arguments: Any) -> int:
        if len(open_below(tmp_path)) >= most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_file(path, *arguments)

    most = 3
    monkeypatch.setattr(os, "open", few)
    for number in [*range(10), *range(10)]:
        assert read(source, f"__{number}_0.distcp", 0, 5000) == content(number)
    source.close()
    most = 0
    with pytest.raises(BrokenCheckpoint) as caught:
        read(source, "__0_0.distcp", 0, 1)
    assert str(caught.value) == (
        f"{tmp_path}/__0_0.distcp cannot be read: Too many open files.\n"
        "This process may not open so many files. Allow more: ulimit -n 4096."
    )


def test_three_hundred_ranks_and_few_descriptors(tmp_path: Path) -> None:
    chunks = [((row,), torch.tensor([float(row)])) for row in range(300)]
    directory = saved.save_chunks(tmp_path / "a", {"model.model.w": chunks}, files=300)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    command = [sys.executable, "-m", "dcptools.convert", "--load-dir", directory, "--save-dir", tmp_path / "out"]
    found = subprocess.run([*command, "--dtype", "keep"], capture_output=True, text=True, preexec_fn=limit)
    assert found.returncode == 0, found.stderr
    assert load_file(tmp_path / "out" / "model.safetensors")["model.w"].tolist() == list(range(300))


@proc
def test_few_files_are_open_at_once_and_the_last_ones_stay(
    source: LocalSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MAX_OPEN_FILES", 3)
    for number in [*range(10), 8]:
        assert read(source, f"__{number}_0.distcp", 0, 5000) == content(number)
    assert open_below(tmp_path) == ["__7_0.distcp", "__8_0.distcp", "__9_0.distcp"]
    read(source, "__0_0.distcp", 0, 1)  # instead of 7, which was used the longest ago
    assert open_below(tmp_path) == ["__0_0.distcp", "__8_0.distcp", "__9_0.distcp"]


def test_threads_share_more_files_than_may_be_open(source: LocalSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is being read is not closed under the reader."""
    monkeypatch.setattr(source_module, "MAX_OPEN_FILES", 2)

    def is_right(seed: int) -> bool:
        chosen = random.Random(seed)
        number, start = chosen.randrange(10), chosen.randrange(4000)
        return read(source, f"__{number}_0.distcp", start, 1000) == content(number)[start : start + 1000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(500)))


@proc
def test_closed_files_are_opened_again(source: LocalSource, tmp_path: Path) -> None:
    read(source, "__0_0.distcp", 0, 1)
    assert open_below(tmp_path) == ["__0_0.distcp"]
    source.close()
    assert open_below(tmp_path) == []
    assert read(source, "__0_0.distcp", 0, 9) == content(0)[:9]


@proc
def test_nothing_stays_open_when_the_source_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    source = LocalSource(tmp_path)
    read(source, "file", 0, 1)
    del source
    assert open_below(tmp_path) == []


def _without_preadv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delattr(os, "preadv", raising=False)
    spec = importlib.util.spec_from_file_location("storage_without_preadv", source_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_systems_without_preadv(source: LocalSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = _without_preadv(monkeypatch).LocalSource(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda start: read(other, "__0_0.distcp", start, 100), range(0, 4900, 100))
        assert b"".join(parts) == content(0)[:4900]


# --- sink -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sink(tmp_path: Path) -> LocalSink:
    return LocalSink(tmp_path, "0123abcd")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def put(sink: LocalSink, name: str, data: bytes) -> None:
    sink.create(name, len(data))
    sink.write(name, 0, memoryview(data))
    sink.finish(name, sync=False)


def test_a_file_shows_up_when_it_is_whole(sink: LocalSink, tmp_path: Path) -> None:
    put(sink, "model.safetensors", b"whole")
    assert names(tmp_path) == [f"{TEMPORARY}0123abcd-model.safetensors.tmp"]
    assert Path(sink.staged("model.safetensors")).read_bytes() == b"whole"
    sink.commit("model.safetensors")
    assert names(tmp_path) == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"whole"


def test_a_file_replaces_an_older_one_in_one_step(sink: LocalSink, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    put(sink, "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    sink.commit("a")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_threads_write_at_any_place_in_any_order(sink: LocalSink, tmp_path: Path) -> None:
    data = content(0, 20_000)
    starts = list(range(0, 20_000, 250))
    random.Random(1).shuffle(starts)
    sink.create("a", len(data))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: sink.write("a", at, memoryview(data)[at : at + 250]), starts))
    sink.finish("a", sync=False)
    sink.commit("a")
    assert (tmp_path / "a").read_bytes() == data


def test_short_writes_are_continued(sink: LocalSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, start: pwrite(descriptor, data[:7], start))
    put(sink, "a", content(0))
    assert Path(sink.staged("a")).read_bytes() == content(0)


def test_large_writes_are_done_in_pieces(sink: LocalSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *of: sizes.append(of[1].nbytes) or pwrite(*of))
    put(sink, "a", data := os.urandom(3_000_000))
    assert Path(sink.staged("a")).read_bytes() == data
    assert max(sizes) < 2 << 20, "the kernel would take pages of 2 MB"


@pytest.mark.parametrize("make", [lambda path, to: path.symlink_to(to), lambda path, to: path.hardlink_to(to)])
def test_nothing_is_written_through_a_link(make: Callable[[Path, Path], None], sink: LocalSink, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    make(tmp_path / ".dcptools-0123abcd-a.bin.tmp", tmp_path / "victim")
    with pytest.raises(FileExistsError):
        put(sink, "a.bin", b"new")
    sink.discard()
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert names(tmp_path) == [".dcptools-0123abcd-a.bin.tmp", "victim"]


def test_what_was_let_go_of_is_committed_by_a_later_sink(sink: LocalSink, tmp_path: Path) -> None:
    """As by a run that goes on where another one stopped, or for several processes."""
    put(sink, "a", b"whole")
    sink.close()
    later = LocalSink(tmp_path, "0123abcd")
    with pytest.raises(FileExistsError):
        later.create("a", 5)
    later.discard()
    assert Path(later.staged("a")).read_bytes() == b"whole"
    later.commit("a")
    assert names(tmp_path) == ["a"]


def test_a_file_has_its_size_from_the_start(sink: LocalSink) -> None:
    sink.create("a", 12345)
    assert os.stat(sink.staged("a")).st_size == 12345
    sink.discard()


@pytest.mark.skipif(sink_module._fallocate is None, reason="only Linux can reserve space")
def test_the_space_of_a_file_is_reserved(sink: LocalSink) -> None:
    sink.create("a", 1 << 20)
    reserved = os.stat(sink.staged("a")).st_blocks * 512
    sink.discard()
    if not reserved and not can_reserve(sink.directory):
        pytest.skip("the file system cannot reserve space")
    assert reserved >= 1 << 20


def can_reserve(directory: Path) -> bool:
    return subprocess.run(["fallocate", "-l", "4096", directory / "probe"], capture_output=True).returncode == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_shows_when_a_file_is_created(
    number: int, sink: LocalSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_fallocate", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        sink.create("a", 100)
    sink.discard()
    assert not names(tmp_path)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR, errno.EINVAL, errno.EPERM])
def test_a_file_system_that_cannot_reserve_space_will_do(
    number: int, sink: LocalSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_fallocate", failing(number))
    put(sink, "a", content(0))
    assert Path(sink.staged("a")).read_bytes() == content(0)


def failing(number: int) -> Callable[..., int]:
    def fallocate(*_: int) -> int:
        ctypes.set_errno(number)
        return -1

    return fallocate


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_mode_that_open_gives(umask: int, mode: int, sink: LocalSink, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        put(sink, "a", b"x")
    finally:
        os.umask(before)
    sink.commit("a")
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == mode


@pytest.mark.parametrize("sync", [True, False])
def test_finish_waits_for_the_disk_if_asked(sync: bool, sink: LocalSink, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sink.create("a", 1)
    sink.finish("a", sync=sync)
    assert len(synced) == sync


@proc
def test_discard_leaves_what_was_committed_and_nothing_else(sink: LocalSink, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    put(sink, "committed", b"x")
    sink.commit("committed")
    put(sink, "finished", b"x")
    sink.create("open", 10)
    sink.discard()
    assert names(tmp_path) == ["committed", "other"]
    assert open_below(tmp_path) == []
    sink.discard()  # again is no error


def test_what_nobody_has_read_yet_is_kept_longer_than_what_was_nearly_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MOST_FETCHED_BYTES", 300)
    fetched: list[int] = []

    def fetch(_: str, start: int, stop: int) -> bytes:
        fetched.append(start)
        return bytes(stop - start)

    fetching = ahead.Ahead(fetch)
    for start in (0, 1000, 2000):
        fetching.announce([("f", start, 100)])
    assert fetching.read_into("f", 1000, memoryview(bytearray(95))) == 95
    fetching.announce([("f", 3000, 100)])
    for start in (0, 2000, 3000):
        assert fetching.read_into("f", start, memoryview(bytearray(100))) == 100
    assert sorted(fetched) == [0, 1000, 2000, 3000]
    assert fetching.read_into("f", 1095, memoryview(bytearray(5))) == 5  # which is fetched again
    assert fetched[-1] == 1095
    fetching.close()
