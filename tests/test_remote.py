"""Checkpoints and models at URLs: a real S3-protocol server behind a proxy that counts and fails, and memory://."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_server import DENIED, SLOW_DOWN, Proxy

import dcptools
from dcptools.checkpoint import read
from dcptools.demo import Demo
from dcptools.errors import DcptoolsError, NotACheckpoint, OutputExists, TargetError, UsageError
from dcptools.hf import read_model
from dcptools.recipe import command_line, python_call
from dcptools.reviewing import review
from dcptools.storage import RemoteSink, open_source, upload
from dcptools.writer import Engine

BUCKET = "bucket"


class Store:
    """The server: its proxy, and what lies in it, past the proxy."""

    def __init__(self, proxy: Proxy, client: Any) -> None:
        self.proxy, self.client = proxy, client

    def put(self, prefix: str, directory: Path) -> None:
        for path in directory.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(directory)}")

    def names(self, prefix: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        return sorted(entry["Key"].removeprefix(f"{prefix}/") for entry in found)

    def content(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()  # type: ignore[no-any-return]

    def unfinished(self) -> int:
        return len(self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


@pytest.fixture(scope="module")
def server(demo: Demo) -> Iterator[Store]:
    pytest.importorskip("s3fs", reason="the extra remote is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server], a server that speaks S3, is not installed")
    import boto3

    upstream = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    upstream.start()
    port = upstream.get_host_and_port()[1]
    proxy = Proxy(port)
    serving = proxy.serve()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{serving.server_port}")
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket=BUCKET)
        store = Store(proxy, client)
        store.put("step-100", demo.checkpoint)
        store.put("assets", demo.assets)
        yield store
    serving.shutdown()
    upstream.stop()


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    server.proxy.reset()
    yield server
    server.proxy.reset()
    for name in server.names("out"):
        server.client.delete_object(Bucket=BUCKET, Key=f"out/{name}")


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives up at once."""
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)


@pytest.fixture(scope="module")
def local(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a conversion on the disk gives, in several shards."""
    target = tmp_path_factory.mktemp("local") / "out"
    dcptools.convert(demo.checkpoint, target, model_assets_dir=demo.assets, shard_size="600kB")
    return target


CKPT, ASSETS, OUT = (f"s3://{BUCKET}/{name}" for name in ("step-100", "assets", "out"))


def convert(**options: Any) -> dcptools.Report:
    return dcptools.convert(CKPT, OUT, **{"model_assets_dir": ASSETS, "shard_size": "600kB", **options})


def same_as(store: Store, local: Path) -> bool:
    names = sorted(path.name for path in local.iterdir())
    return store.names("out") == names and all(
        store.content(f"out/{name}") == (local / name).read_bytes() for name in names
    )


def test_inspect_reads_the_metadata_only(store: Store, demo: Demo) -> None:
    assert dcptools.inspect(CKPT).equals(dcptools.inspect(demo.checkpoint))
    asked = [request for request in store.proxy.requests if "distcp" in request.path]
    assert asked == []
    assert store.proxy.bytes_of(".metadata") == (demo.checkpoint / ".metadata").stat().st_size


def test_a_conversion_between_buckets_gives_the_same_bytes_without_a_file_on_the_disk(
    store: Store, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*args: Any, **options: Any) -> None:
        raise AssertionError("a temporary file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, no_file)
    report = convert(workers=2)
    assert same_as(store, local)
    assert report.save_dir == OUT
    assert store.unfinished() == 0


def test_only_the_bytes_that_are_needed_are_read_and_neighbours_together(store: Store) -> None:
    planned = dcptools.plan(dcptools.preview(CKPT))
    items = {
        (chunk.file, chunk.start): chunk.nbytes
        for output in planned.mapping.outputs
        for view in output.sources
        for chunk in planned.checkpoint[view.key].chunks
    }
    dcptools.write(planned, OUT)
    asked = [request for request in store.proxy.requests if request.path.endswith(".distcp")]
    assert sum(request.nbytes for request in asked) <= 1.05 * sum(items.values())
    assert len(asked) < len(items)


def test_reads_are_in_flight_whatever_the_workers(store: Store) -> None:
    planned = dcptools.plan(dcptools.preview(CKPT))
    store.proxy.latency = 0.05
    dcptools.write(planned, OUT, workers=1)
    assert store.proxy.most_in_flight >= 8


def test_a_server_that_throttles_is_asked_again(store: Store, local: Path) -> None:
    count = iter(range(1_000_000))
    store.proxy.refuse = lambda method, path: SLOW_DOWN if next(count) % 7 == 3 else None
    convert()
    assert any(b"" != None and request.nbytes == len(SLOW_DOWN) for request in store.proxy.requests)
    store.proxy.reset()
    assert same_as(store, local)


def refused(store: Store, refuse: Callable[[str, str], bool], error: bytes = DENIED) -> None:
    store.proxy.refuse = lambda method, path: error if refuse(method, path) else None


class TestErrors:
    def test_no_such_bucket(self, store: Store) -> None:
        with pytest.raises(NotACheckpoint, match="There is no directory s3://nowhere/step"):
            read("s3://nowhere/step")
        with pytest.raises(TargetError, match="The specified bucket does not exist"):
            dcptools.convert(CKPT, "s3://nowhere/out")

    def test_no_permission_to_read(self, store: Store, one_try: None) -> None:
        refused(store, lambda method, path: "distcp" in path)
        with pytest.raises(DcptoolsError, match=r"s3://bucket/step-100/__\d_0.distcp cannot be read: Access Denied"):
            convert()
        assert store.names("out") == []
        assert store.unfinished() == 0

    @pytest.mark.parametrize("error", [DENIED, SLOW_DOWN])
    def test_a_part_that_fails_for_good(self, store: Store, one_try: None, error: bytes) -> None:
        refused(store, lambda method, path: method == "PUT" and "model-00002" in path, error)
        with pytest.raises(TargetError, match="Writing to s3://bucket/out failed: .*model-00002.*\nNothing was kept."):
            convert()
        store.proxy.reset()
        assert store.names("out") == []
        assert store.unfinished() == 0

    def test_a_shard_that_cannot_be_completed(self, store: Store, one_try: None) -> None:
        refused(store, lambda method, path: method == "POST" and "uploadId" in path and "model-00002" in path)
        with pytest.raises(TargetError, match="Publishing s3://bucket/out failed: Access Denied"):
            convert()
        store.proxy.reset()
        assert store.names("out") == []

    def test_nobody_answers(self, store: Store) -> None:
        """From the command line: a few lines, and no traceback."""
        environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
        command = [sys.executable, "-m", "dcptools", "inspect", CKPT]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert found.returncode == 1
        assert found.stderr.startswith("Error: s3://bucket/step-100/.metadata cannot be read: Could not connect")
        assert found.stderr.count("\n") == 2
        assert "secret" not in found.stderr

    def test_a_password_in_a_url_is_refused_and_not_shown(self) -> None:
        with pytest.raises(UsageError) as caught:
            read("sftp://me:secret@host/step")
        assert str(caught.value).startswith("sftp://***@host/step: a URL must not hold a password")
        assert "secret" not in str(caught.value)

    def test_a_recipe_does_not_show_a_password(self, demo: Demo) -> None:
        planned = dcptools.plan(demo.checkpoint)
        shown = [recipe(planned, "sftp://me:secret@host/out") for recipe in (command_line, python_call)]
        assert all("sftp://***@host/out" in text and "secret" not in text for text in shown)

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        core = pytest.importorskip("fsspec.core")

        def missing(*args: Any, **options: Any) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(core, "url_to_fs", missing)
        with pytest.raises(UsageError, match=r"a package for s3:// is missing .*\n.*pip install 'dcptools\[remote\]'"):
            read(CKPT)

    def test_an_unknown_scheme(self) -> None:
        with pytest.raises(UsageError, match="nothing://x/y cannot be opened: Protocol not known: nothing"):
            read("nothing://x/y")

    def test_what_needs_files_that_show_before_they_are_whole(self, demo: Demo) -> None:
        planned = dcptools.plan(dcptools.preview(demo.checkpoint, model_assets_dir=demo.assets))
        with pytest.raises(UsageError, match="resume=True works for local directories.*\nConvert into a directory"):
            dcptools.write(planned, "memory://nothing/model", resume=True)
        with pytest.raises(
            UsageError, match="Many processes can fill only a local directory.*\nConvert into a directory"
        ):
            dcptools.write(planned, "memory://nothing/model", make_engine=partial(Engine))
        assert open_source("memory://nothing/model").kind() is None

    def test_the_hub_is_not_written_to(self, demo: Demo) -> None:
        pytest.importorskip("huggingface_hub")
        with pytest.raises(TargetError, match="hf://me/model can only be read"):
            dcptools.convert(demo.checkpoint, "hf://me/model")


class TestOverwrite:
    def test_a_model_is_not_replaced_unasked(self, store: Store, local: Path) -> None:
        convert()
        with pytest.raises(OutputExists, match=r"s3://bucket/out already holds"):
            convert()
        assert same_as(store, local)

    def test_there_is_never_an_index_for_shards_of_two_models(self, store: Store, local: Path) -> None:
        convert(shard_size="400kB", dtype="float32")
        store.proxy.requests.clear()
        convert(overwrite=True)
        asked = [(r.method, r.path.removeprefix(f"/{BUCKET}/out/").partition("?")) for r in store.proxy.requests]
        removed = asked.index(("DELETE", ("model.safetensors.index.json", "", "")))
        completed = [
            (at, name)
            for at, (method, (name, _, query)) in enumerate(asked)
            if method == "POST" and query.startswith("uploadId=")
        ]
        assert removed < completed[0][0]
        assert completed[-1][1] == "model.safetensors.index.json"
        assert same_as(store, local)  # the shards of the old model are gone too

    def test_what_becomes_of_the_old_model_is_told(self, store: Store, one_try: None) -> None:
        convert()
        refused(store, lambda method, path: method == "POST" and "uploadId" in path and "model-00002" in path)
        with pytest.raises(TargetError, match="The old model is gone"):
            convert(overwrite=True)
        store.proxy.reset()
        assert "model.safetensors.index.json" not in store.names("out")


class TestComparing:
    def test_verify_reads_both_from_the_bucket(self, store: Store) -> None:
        convert()
        assert dcptools.verify(OUT, CKPT, model_assets_dir=ASSETS).ok
        weight = read_model(OUT).weights["lm_head.weight"]
        content = bytearray(store.content(f"out/{weight.file}"))
        content[weight.start] ^= 1
        store.client.put_object(Bucket=BUCKET, Key=f"out/{weight.file}", Body=bytes(content))
        found = dcptools.verify(OUT, CKPT, model_assets_dir=ASSETS)
        assert [w.name for w in found.weights if w.state != "same"] == ["lm_head.weight"]

    def test_diff_compares_a_bucket_with_the_disk(self, store: Store, demo: Demo) -> None:
        assert dcptools.diff(CKPT, demo.checkpoint, keys=["model.*"]).same


def test_a_file_that_is_written_in_any_order_arrives_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(upload, "WAITING_BYTES", 1 << 20)
    content = np.random.default_rng(0).integers(0, 256, 12 << 20, np.uint8).tobytes()
    sink = RemoteSink(OUT)
    sink.create("file", len(content))
    places = list(range(0, len(content), 1 << 18))
    for at in [*places[1:20:2], *reversed(places[0:20:2]), *reversed(places[20:])]:
        sink.write("file", at, memoryview(content)[at : at + (1 << 18)])
    sink.finish("file", sync=True)
    assert store.names("out") == []
    sink.commit("file")
    assert store.content("out/file") == content
    assert sum("partNumber" in request.path for request in store.proxy.requests) == 3


def test_the_widget_browses_a_bucket(store: Store) -> None:
    widgets = pytest.importorskip("dcptools.widgets")
    step = widgets.Open(f"s3://{BUCKET}")
    labels = [label for label, _ in step.folders.options]
    assert labels == [f"s3://{BUCKET}", "assets/", "step-100/   (DCP checkpoint)"]
    step.folders.value = CKPT
    assert step.checkpoint.path == CKPT


class TestInMemory:
    """A file system that shows files while they are written, through the same code."""

    @pytest.fixture
    def place(self, demo: Demo) -> Iterator[str]:
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        memory.put(f"{demo.checkpoint}/", "/place/step/", recursive=True)
        memory.put(f"{demo.assets}/", "/place/assets/", recursive=True)
        yield "memory://place"
        memory.rm("/place", recursive=True)

    def test_the_whole_line(self, place: str, local: Path, tmp_path: Path) -> None:
        options: Any = {"model_assets_dir": f"{place}/assets", "shard_size": "600kB"}
        report = dcptools.convert(f"{place}/step", **options, verify=True, report=tmp_path / "report.json")
        assert dcptools.verify(report.save_dir, report=tmp_path / "report.json").ok
        assert report.save_dir == f"{place}/step/hf_ckpt"
        written = open_source(report.save_dir)
        assert written.entries() == sorted(path.name for path in local.iterdir())
        assert all(written.content(name) == (local / name).read_bytes() for name in written.entries())

    def test_the_command_line_takes_urls(self, place: str, local: Path) -> None:
        from click.testing import CliRunner

        from dcptools.cli import main_group

        arguments = ["convert", f"{place}/step", "--save-dir", f"{place}/out", "--shard-size", "600kB", "--verify"]
        found = CliRunner().invoke(main_group, [*arguments, "--model-assets-dir", f"{place}/assets"])
        assert found.exit_code == 0, found.output
        found = CliRunner().invoke(main_group, ["diff", f"{place}/out", str(local)])
        assert found.exit_code == 0, found.output

    def test_its_values_are_loaded_and_reviewed(self, place: str, local: Path, tmp_path: Path) -> None:
        state = dcptools.load_state_dict(f"{place}/step")
        assert {name: tuple(value.shape) for name, value in state.items()} == {
            name: weight.shape for name, weight in read_model(local).weights.items()
        }
        page = review(f"{place}/step", tmp_path / "review.html", save_dir=f"{place}/model").read_text("utf-8")
        assert f"--save-dir {place}/model" in page

    def test_a_file_that_was_changed_meanwhile_is_noticed(self, place: str) -> None:
        import fsspec

        checkpoint = read(f"{place}/step")
        assert checkpoint.changed_files() == ()
        content = fsspec.filesystem("memory").cat_file("/place/step/__0_0.distcp")
        fsspec.filesystem("memory").pipe_file("/place/step/__0_0.distcp", content)
        assert checkpoint.changed_files() == ("__0_0.distcp",)
