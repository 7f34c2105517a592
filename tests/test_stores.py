"""Other object stores than S3, each with the library of its own and a server on the loopback.

Skipped where the library or the server is not installed: ``pip install adlfs gcsfs gcp-storage-emulator`` and
``npm install azurite``, whose ``azurite-blob`` is looked for in ``PATH``.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch
from checkpoints import saved

import dcptools
from dcptools.errors import DcptoolsError, OutputExists
from dcptools.storage import LocalSource, open_source, upload

# Well known: that of every emulator of Azure's storage
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
OPTIONS: dict[str, Any] = {"shard_size": "100kB"}


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 24 tensors, which are two megabytes in three files."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"model.{n:02}.weight": torch.randn(200, 100, generator=generator) for n in range(24)}
    return saved.save(tmp_path_factory.mktemp("stores") / "step", {"model": tensors})


@pytest.fixture(scope="module")
def local(step: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a conversion on the disk gives."""
    target = tmp_path_factory.mktemp("local") / "out"
    dcptools.convert(step, target, **OPTIONS)
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not start")


@pytest.fixture(scope="module")
def abfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    adlfs = pytest.importorskip("adlfs", reason="adlfs is not installed")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob, a server of Azure's protocol, is not installed")
    port = free_port()
    words = [program, "--silent", "--skipApiVersionCheck", "--blobPort", str(port)]
    with subprocess.Popen([*words, "--location", str(tmp_path_factory.mktemp("azurite"))]) as server:
        wait_for(port)
        account = f"AccountName=devstoreaccount1;AccountKey={AZURE_KEY}"
        where = f"DefaultEndpointsProtocol=http;{account};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", where)
            adlfs.AzureBlobFileSystem().mkdir("bucket")
            yield "abfs://bucket"
        server.terminate()


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # it would ask what kind of bucket it is by gRPC, which the emulator does not speak
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        pytest.importorskip("gcsfs", reason="gcsfs is not installed")
        emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
        port = free_port()
        server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
        server.start()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setitem(pytest.importorskip("fsspec.config").conf, "gs", {"token": "anon"})
        yield "gs://bucket"
        server.stop()


def put(url: str, directory: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fs, path = fsspec.core.url_to_fs(url)
    for file in directory.iterdir():
        fs.put_file(str(file), f"{path}/{file.name}")


@pytest.mark.parametrize("scheme", ["abfs", "gs"])
def test_a_store_is_read_from_and_written_to(
    scheme: str, request: pytest.FixtureRequest, step: Path, local: Path, tmp_path: Path
) -> None:
    place = request.getfixturevalue(scheme)
    put(f"{place}/step", step)
    url, out = f"{place}/step", f"{place}/out"
    assert dcptools.inspect(url).equals(dcptools.inspect(step))
    checkpoint = dcptools.read(url)
    assert checkpoint.changed_files() == ()
    report = dcptools.convert(checkpoint, out, **OPTIONS, verify=True, report=tmp_path / "report.json")
    written = open_source(out)
    assert written.entries() == sorted(path.name for path in local.iterdir())
    assert all(written.content(name) == (local / name).read_bytes() for name in written.entries())
    assert len(report.files) > 10
    assert dcptools.verify(out, report=tmp_path / "report.json").ok
    with pytest.raises(OutputExists):
        dcptools.convert(step, out, **OPTIONS)
    dcptools.convert(step, out, overwrite=True)
    assert written.entries() == ["model.safetensors"]


def test_nothing_shows_of_a_run_that_failed_but_what_resume_keeps(
    abfs: str, step: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with ``gs``: its emulator cannot abort an upload."""
    out, read_into, count = f"{abfs}/stopped", LocalSource.read_into, iter(range(1_000_000))

    def fails(self: Any, name: str, start: int, into: memoryview) -> None:
        if next(count) > 60:
            raise DcptoolsError("The disk is broken.")
        read_into(self, name, start, into)

    with monkeypatch.context() as patch:
        patch.setattr(LocalSource, "read_into", fails)
        with pytest.raises(DcptoolsError, match="The disk is broken"):
            dcptools.convert(step, out, **OPTIONS)
        assert not open_source(out).kind()
        count = iter(range(1_000_000))
        with pytest.raises(DcptoolsError, match="The disk is broken"):
            dcptools.convert(step, out, **OPTIONS, resume=True)
    left = [name for name in open_source(out).entries() if name.endswith(".safetensors")]
    report = dcptools.convert(step, out, **OPTIONS, resume=True)
    assert list(report.taken_over) == left
    assert left
    written = open_source(out)
    assert written.entries() == sorted(path.name for path in local.iterdir())
    assert all(written.content(name) == (local / name).read_bytes() for name in written.entries())


def test_uploads_to_gs_are_cancelled_when_a_run_fails(gs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator does not know that request; so it is looked at whether each upload that was begun gets it."""
    core = pytest.importorskip("gcsfs.core")
    tensors = {f"model.{n}.weight": torch.zeros(1000, 1000) for n in range(4)}
    step, out = saved.save(tmp_path / "step", {"model": tensors}), f"{gs}/cancelled"
    request, read_into, count, asked = core.GCSFileSystem._request, LocalSource.read_into, iter(range(1_000_000)), set()

    async def recorded(self: Any, method: str, path: str, *args: Any, **given: Any) -> Any:
        if found := re.search("upload_id=([^&]+)", path):
            asked.add((method, found[1]))
        if method == "DELETE" and found:
            return 204, {}, None, b""
        return await request(self, method, path, *args, **given)

    def fails(self: Any, name: str, start: int, into: memoryview) -> None:
        if next(count) > 14:
            raise DcptoolsError("The disk is broken.")
        read_into(self, name, start, into)

    monkeypatch.setattr(core.GCSFileSystem, "_request", recorded)
    monkeypatch.setattr(LocalSource, "read_into", fails)
    monkeypatch.setattr(upload, "PART_BYTES", 1 << 20)
    with pytest.raises(DcptoolsError, match="The disk is broken"):
        dcptools.convert(step, out, shard_size="8MB", dtype="keep", workers=2)
    begun = {number for method, number in asked if method == "POST"}
    assert begun and begun == {number for method, number in asked if method == "DELETE"}
    assert not open_source(out).kind()


@pytest.fixture
def hub(step: Path, local: Path) -> Iterator[str]:
    """Two models of somebody, on a server that answers the few requests of which reading is made."""
    hub = pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _hub({"me/step": step, "me/model": local}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    conf = pytest.importorskip("fsspec.config").conf
    hub.HfFileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(conf, "hf", {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": False})
        yield "hf://me"
    hub.HfFileSystem.clear_instance_cache()
    server.shutdown()


def _hub(repositories: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if found := re.fullmatch(r"/api/models/(\w+/\w+)(/revision/\w+)?", path):
                self.say({"id": found[1], "sha": "0" * 40, "siblings": []}, found[1] in repositories)
            elif found := re.fullmatch(r"/api/models/(\w+/\w+)/tree/\w+/?(.*)", path):
                self.say([_entry(file) for file in repositories[found[1]].iterdir()], not found[2])
            elif found := re.fullmatch(r"/(\w+/\w+)/resolve/\w+/(.+)", path):
                self.send_file(repositories[found[1]] / found[2])
            else:
                self.say({}, False)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            found = re.fullmatch(r"/api/models/(\w+/\w+)/paths-info/\w+", urlsplit(self.path).path)
            files = [repositories[found[1]] / name for name in body.get("paths", [])] if found else []
            self.say([_entry(file) for file in files if file.is_file()], found is not None)

        def say(self, value: Any, found: bool) -> None:
            self.answer(200 if found else 404, json.dumps(value).encode(), "application/json")

        def send_file(self, file: Path) -> None:
            if not file.is_file():
                self.say({}, False)
                return
            content = file.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = content[int(asked[1]) : int(asked[2]) + 1] if asked else content
            self.answer(206 if asked else 200, part, "application/octet-stream")

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def _entry(file: Path) -> dict[str, Any]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{file.stat().st_mtime_ns:040x}"}


def test_the_hub_is_read_from(hub: str, step: Path, local: Path, tmp_path: Path) -> None:
    assert dcptools.inspect(f"{hub}/step").equals(dcptools.inspect(step))
    dcptools.convert(f"{hub}/step", tmp_path / "out", **OPTIONS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in local.iterdir())
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in local.iterdir())
    assert dcptools.verify(f"{hub}/model", f"{hub}/step").ok
    assert dcptools.diff(f"{hub}/model", local).same
