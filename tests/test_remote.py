"""Checkpoints and models at URLs: a real S3-protocol server behind a proxy that counts and fails, and memory://."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import saved
from click.testing import CliRunner
from remote_server import DENIED, SLOW_DOWN, Proxy
from test_ranks import LOST, torchrun

import dcptools
from dcptools._text import format_bytes
from dcptools.checkpoint import read
from dcptools.cli import main_group
from dcptools.demo import Demo
from dcptools.errors import DcptoolsError, NotACheckpoint, OutputExists, TargetError, UsageError
from dcptools.hf import read_model
from dcptools.loading import load_reference, open_tokenizer
from dcptools.recipe import command_line, python_call
from dcptools.reviewing import review
from dcptools.storage import RemoteSink, ahead, open_source, upload
from dcptools.writer import check_target

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


SECRET = "w8Zq-not-to-be-shown"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
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


def test_the_predicted_memory_counts_what_is_read_ahead(store: Store, demo: Demo) -> None:
    here, there = (dcptools.plan(dcptools.preview(path)) for path in (demo.checkpoint, CKPT))
    assert there.peak_bytes_with(2) > here.peak_bytes_with(2) + ahead.MOST_FETCHED_BYTES


def test_the_predicted_memory_counts_what_waits_to_be_uploaded(store: Store, demo: Demo) -> None:
    here, there = (dcptools.plan(dcptools.preview(path)) for path in (demo.checkpoint, CKPT))
    part, waits = upload.COPIES * upload.PART_BYTES, upload.WAITING_BYTES
    for plan, local in ((here, demo.checkpoint), (there, "out")):  # by default it goes beside the checkpoint
        one, three = (plan.peak_bytes_with(n, OUT) - plan.peak_bytes_with(n, local) for n in (1, 3))
        assert (three - one, one >= waits + part) == (2 * part, True)
    assert here.peak_bytes_with(2) == here.peak_bytes_with(2, demo.checkpoint)
    assert there.peak_bytes_with(2) == there.peak_bytes_with(2, OUT)
    words = ["convert", str(demo.checkpoint), "--save-dir", OUT, "--workers", "3", "--dry-run"]
    told = f"Uploading there takes about {format_bytes(here.peak_bytes_with(3, OUT))} of memory."
    assert told in CliRunner().invoke(main_group, words).output
    dry = json.loads(CliRunner().invoke(main_group, [*words, "--json", "--quiet"]).output)
    assert dry["plan"]["peak_bytes"] == here.peak_bytes_with(3, OUT)


def test_what_waits_for_its_turn_is_bounded_for_all_files_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "WAITING_BYTES", 5 << 18)
    spilled: list[int] = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **given: spilled.append(1) or make(**given))
    block, sink = bytes(range(256)) * (1 << 10), RemoteSink(OUT)  # a block of 1 << 18 bytes
    for name in ("one", "two"):
        sink.create(name, 4 * len(block))
        for at in (3, 2, 1):
            sink.write(name, at * len(block), memoryview(block))
    assert spilled == [1]  # the sixth block
    for name in ("one", "two"):
        sink.write(name, 0, memoryview(block))
        sink.finish(name, sync=True)
        sink.commit(name)
        assert store.content(f"out/{name}") == 4 * block
    sink.create("three", 6 * len(block))
    for at in (5, 4, 3, 2, 1):
        sink.write("three", at * len(block), memoryview(block))
    sink.discard()
    assert spilled == [1]  # all room was given back


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

    @pytest.mark.parametrize("url", [f"s3://key:{SECRET}@bucket/step", f"https://host/step?X-Amz-Signature={SECRET}"])
    @pytest.mark.parametrize(
        "words",
        [
            ("inspect", "URL"),
            ("convert", "STEP", "--save-dir", "URL"),
            ("convert", "STEP", "--save-dir", "URL", "--resume", "--dry-run"),
            ("preview", "STEP", "--model-assets-dir", "URL"),
            ("preview", "STEP", "--reference", "URL"),
            ("verify", "URL", "STEP"),
            ("diff", "STEP", "URL"),
        ],
    )
    def test_no_command_shows_the_password_of_a_url(self, words: tuple[str, ...], url: str, tmp_path: Path) -> None:
        step = saved.trained(tmp_path / "step")
        given = [{"URL": url, "STEP": str(step)}.get(word, word) for word in words]
        found = CliRunner().invoke(main_group, given)
        assert isinstance(found.exception, UsageError)
        assert "***" in str(found.exception)
        assert SECRET not in f"{found.output}{found.exception}"

    @pytest.mark.parametrize("words", [("step", "URL"), ("--load-dir", "URL", "out"), ("step", "URL", "x")])
    def test_words_that_are_too_many_are_shown_without_a_password(self, words: tuple[str, ...]) -> None:
        given = [f"s3://key:{SECRET}@bucket/step" if word == "URL" else word for word in words]
        found = CliRunner().invoke(main_group, ["convert", *given])
        assert (found.exit_code, "s3://***@bucket/step" in found.output, SECRET in found.output) == (2, True, False)

    def test_credentials_of_the_configuration_are_shown_nowhere(
        self, store: Store, one_try: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        conf = pytest.importorskip("fsspec.config").conf
        monkeypatch.setitem(conf, "s3", {"key": "key", "secret": SECRET})
        report = convert(report=tmp_path / "report.json", progress=True)
        mapping = dcptools.preview(CKPT, model_assets_dir=ASSETS)
        page = review(mapping, tmp_path / "review.html", save_dir=OUT)
        refused(store, lambda method, path: "distcp" in path)
        with pytest.raises(DcptoolsError) as caught:
            convert(overwrite=True)
        values = (report, mapping, mapping.checkpoint, caught.value, *capfd.readouterr())
        shown = [str(value) + repr(value) + getattr(value, "_repr_html_", str)() for value in values]
        shown += [(tmp_path / "report.json").read_text(), page.read_text("utf-8")]
        shown += [recipe(dcptools.plan(mapping), OUT) for recipe in (command_line, python_call)]
        assert not [text for text in shown if SECRET in text]

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

    @pytest.mark.parametrize("words", [("inspect", "URL"), ("convert", "STEP", "--save-dir", "URL")])
    def test_an_unknown_scheme(self, words: tuple[str, ...], demo: Demo) -> None:
        given = [{"URL": "s4://bucket/x", "STEP": str(demo.checkpoint)}.get(word, word) for word in words]
        found = CliRunner().invoke(main_group, given)
        assert isinstance(found.exception, UsageError)
        assert str(found.exception) == (
            "s4://bucket/x cannot be opened: no file system is called s4.\n"
            "Check the URL. Among those that fsspec knows are s3://, gs://, abfs://, hf:// (to read) and memory://; "
            "or give a path."
        )

    @pytest.mark.parametrize(
        ("url", "library", "advice"),
        [
            ("s3://bucket/x", "s3fs", "Install it: pip install 'dcptools[remote]'."),
            ("gs://bucket/x", "gcsfs", "Install it: pip install 'gcsfs'."),
            ("sftp://host/x", "paramiko", "Install that package."),
        ],
    )
    def test_a_library_that_is_not_installed(
        self, url: str, library: str, advice: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = pytest.importorskip("fsspec.registry")
        monkeypatch.delitem(registry._registry, url.partition(":")[0], raising=False)
        for module in (library, "fsspec.implementations.sftp"):
            monkeypatch.setitem(sys.modules, module, None)
        found = CliRunner().invoke(main_group, ["inspect", url])
        assert isinstance(found.exception, UsageError)
        first, last = str(found.exception).splitlines()
        assert first.startswith(f"{url} cannot be opened: a package for {url.partition(':')[0]}:// is missing (")
        assert (library in first, last) == (True, advice)

    def test_the_hub_and_web_servers_are_not_written_to(self, demo: Demo) -> None:
        pytest.importorskip("huggingface_hub")
        with pytest.raises(TargetError, match="hf://me/model can only be read"):
            dcptools.convert(demo.checkpoint, "hf://me/model")
        with pytest.raises(TargetError, match="https://host/model can only be read.\nGive a directory, or"):
            dcptools.convert(demo.checkpoint, "https://host/model")


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

    def test_reads_are_in_flight_whatever_the_workers(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        convert(report=tmp_path / "report.json")
        monkeypatch.setattr(ahead, "REQUEST_BYTES", 1 << 16)
        mapping = dcptools.preview(CKPT)
        stored = sum(mapping.checkpoint[view.key].nbytes for output in mapping.outputs for view in output.sources)
        written = sum(len(store.content(f"out/{name}")) for name in store.names("out") if name.endswith("safetensors"))
        comparisons: list[tuple[int, Callable[[], Any]]] = [
            (16, lambda: dcptools.verify(OUT, mapping, workers=1)),
            (6, lambda: dcptools.verify(OUT, report=tmp_path / "report.json", workers=1)),  # of one small shard
            (16, lambda: dcptools.diff(mapping, OUT, cast=True, workers=1)),
        ]
        for least, compare in comparisons:
            store.proxy.reset()
            store.proxy.latency = 0.05
            compare()
            assert store.proxy.most_in_flight >= least
            assert store.proxy.bytes_of(".distcp") <= 1.15 * stored  # items have some bytes around their values
            assert store.proxy.bytes_of(".safetensors") <= 1.1 * written

    def test_assets_and_small_files_are_read_at_the_same_time(self, store: Store, demo: Demo, tmp_path: Path) -> None:
        assets = tmp_path / "assets"
        shutil.copytree(demo.assets, assets)
        for number in range(12):
            (assets / f"template_{number}.jinja").write_text(f"{{# {number} #}}")
        report = tmp_path / "report.json"
        convert(model_assets_dir=str(assets), report=report)
        mapping = dcptools.preview(CKPT, model_assets_dir=assets)
        comparisons: list[Callable[[], Any]] = [
            lambda: dcptools.verify(OUT, mapping),
            lambda: dcptools.verify(OUT, report=report),
        ]
        for compare in comparisons:
            store.proxy.reset()
            store.proxy.latency = 0.05
            assert compare().ok
            small = [r for r in store.proxy.requests if "template_" in r.path]
            first = store.proxy.requests.index(small[0])
            between = store.proxy.requests[first : store.proxy.requests.index(small[-1])]
            assert len(small) == 12
            assert max(r.others for r in between) >= 8

    def test_diff_compares_a_bucket_with_the_disk(self, store: Store, demo: Demo) -> None:
        assert dcptools.diff(CKPT, demo.checkpoint, keys=["model.*"]).same


class TestResume:
    @pytest.fixture
    def stopped(self, store: Store, one_try: None) -> None:
        """Two of three shards are there."""
        refused(store, lambda method, path: method == "PUT" and "model-00003" in path)
        with pytest.raises(TargetError, match=r"2 of 3 files are finished and kept: continue with resume=True\."):
            convert(resume=True, workers=1)
        store.proxy.reset()
        assert store.names("out") == [".dcptools-journal", *SHARDS[:2]]  # neither config nor index: no model
        assert store.unfinished() == 0

    def test_what_is_finished_is_not_written_again(self, store: Store, stopped: None, local: Path) -> None:
        planned = dcptools.plan(dcptools.preview(CKPT, model_assets_dir=ASSETS), "600kB")
        check_target(planned, OUT, overwrite=False, resume=True)
        assert convert(resume=True).taken_over == tuple(SHARDS[:2])
        assert not [r for r in store.proxy.requests if r.method in ("PUT", "POST") and SHARDS[0] in r.path]
        assert same_as(store, local)

    def test_nan_in_what_is_finished_is_still_told(self, store: Store, one_try: None, tmp_path: Path) -> None:
        state = {f"model.{name}": torch.full((9,), value) for name, value in (("a", torch.nan), ("b", 1.0), ("c", 2.0))}
        directory = saved.trained(tmp_path / "step_10", state, optimizer=False)
        options: Any = {"shard_size": 36, "dtype": "keep", "resume": True, "workers": 1}
        refused(store, lambda method, path: method == "PUT" and "model-00003" in path)
        with pytest.raises(TargetError, match="2 of 3 files are finished and kept"):
            dcptools.convert(directory, OUT, **options)
        store.proxy.reset()
        report = dcptools.convert(directory, OUT, **options)
        assert report.taken_over == tuple(SHARDS[:2])
        assert [(f.code, f.key) for f in report.found_while_writing] == [("all-nan", "model.a")]

    def test_what_was_replaced_since_is_written_again(self, store: Store, stopped: None, local: Path) -> None:
        other = store.content(f"out/{SHARDS[0]}")[:-1] + b"?"
        store.client.put_object(Bucket=BUCKET, Key=f"out/{SHARDS[0]}", Body=other)
        assert convert(resume=True).taken_over == (SHARDS[1],)
        assert same_as(store, local)

    def test_it_is_no_model_for_others(self, store: Store, stopped: None, local: Path) -> None:
        with pytest.raises(OutputExists, match="of a run that was stopped.\nNothing was written. Continue it"):
            convert()
        with pytest.raises(TargetError, match="belong to another conversion:\n  dtype: the default before, keep"):
            convert(resume=True, dtype="keep")
        convert(overwrite=True)
        assert same_as(store, local)

    def test_a_model_is_not_replaced_shard_by_shard(self, store: Store) -> None:
        convert()
        with pytest.raises(TargetError, match="a run with resume=True cannot replace a model at a URL"):
            convert(resume=True, overwrite=True)

    def test_a_single_file_shows_when_it_is_whole(self, store: Store, one_try: None) -> None:
        refused(store, lambda method, path: method == "PUT" and "config.json" in path)
        with pytest.raises(TargetError, match="config.json.*\nNothing was kept."):
            convert(resume=True, shard_size="1GB")
        store.proxy.reset()
        assert store.names("out") == []


class TestTorchrun:
    """Two processes that torchrun starts, each of which uploads its own shards."""

    def test_they_write_the_model_of_one_and_the_index_last(self, store: Store, local: Path, tmp_path: Path) -> None:
        words = [CKPT, "--save-dir", OUT, "--model-assets-dir", ASSETS, "--shard-size", "600kB", "--verify", "--quiet"]
        done = torchrun(tmp_path, 2, *words)
        assert (done.status, done.said) == (0, []), done.err
        completed = [
            r.path.partition("?")[0] for r in store.proxy.requests if r.method == "POST" and "upload" in r.path
        ]
        assert completed[-1].endswith("/model.safetensors.index.json")
        assert same_as(store, local)
        assert store.unfinished() == 0

    def test_one_that_is_killed_leaves_nothing(self, store: Store, demo: Demo, tmp_path: Path) -> None:
        words = [demo.checkpoint, "--save-dir", OUT, "--shard-size", "400kB", "--quiet"]
        done = torchrun(tmp_path, 2, *words, rank0="slow", rank1="slow kill")
        assert (done.status, done.said[-1:]) == (1, [LOST])
        assert store.names("out") == []

    def test_one_process_goes_on_with_what_they_had_finished(self, store: Store, demo: Demo, tmp_path: Path) -> None:
        options: Any = {"model_assets_dir": demo.assets, "shard_size": "200kB"}
        words = [demo.checkpoint, "--save-dir", OUT, "--shard-size", "200kB", "--model-assets-dir", demo.assets]
        done = torchrun(tmp_path, 2, *words, "--resume", "--quiet", rank1="slow kill")
        assert (done.status, done.said[-1:]) == (1, [LOST])
        finished = [name for name in store.names("out") if name.endswith(".safetensors")]
        assert store.names("out") == [".dcptools-journal", *finished]
        report = dcptools.convert(demo.checkpoint, OUT, resume=True, **options)
        assert set() < set(report.taken_over) <= set(finished)
        alone = dcptools.convert(demo.checkpoint, tmp_path / "alone", **options)
        assert len(alone.files) > len(finished)
        assert same_as(store, tmp_path / "alone")

    def test_one_that_cannot_complete_its_files_leaves_nothing(self, store: Store, demo: Demo, tmp_path: Path) -> None:
        refused(store, lambda method, path: method == "POST" and "uploadId" in path and "model-00004" in path)
        done = torchrun(tmp_path, 2, demo.checkpoint, "--save-dir", OUT, "--shard-size", "400kB", "--quiet")
        assert "Error: Publishing s3://bucket/out failed: Access Denied: s3://bucket/out/model-00004-of" in done.err
        assert (done.status, len(done.said)) == (1, 1)
        store.proxy.reset()
        assert store.names("out") == []
        assert store.unfinished() == 0


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


def test_a_reference_and_assets_may_be_in_a_bucket(store: Store, local: Path) -> None:
    for name in local.iterdir():
        store.client.upload_file(str(name), BUCKET, f"out/{name.name}")
    for reference in (OUT, f"{OUT}/model.safetensors.index.json"):
        assert dcptools.preview(CKPT, reference=reference).fit.complete
    mapping = dcptools.preview(CKPT, model_assets_dir=ASSETS)
    assert mapping.assets is not None
    assert mapping.assets.dtype == "float32"
    assert mapping.fit.complete


def test_a_model_and_its_tokenizer_are_loaded_from_a_bucket(store: Store, demo: Demo) -> None:
    model = dcptools.load_model(CKPT, model_assets_dir=ASSETS)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.generation_config.to_diff_dict().keys() >= {"eos_token_id"}
    assert open_tokenizer(ASSETS)("two words")["input_ids"] == open_tokenizer(demo.assets)("two words")["input_ids"]
    with pytest.raises(UsageError, match="The assets directory s3://bucket/nothing does not exist"):
        open_tokenizer(f"s3://{BUCKET}/nothing")


@pytest.mark.parametrize(
    "use",
    [
        lambda url: dcptools.convert(CKPT, OUT, report=url),
        lambda url: dcptools.verify(OUT, report=url),
        lambda url: review(CKPT, url),
        lambda url: dcptools.preview(CKPT, family=url),
        load_reference,
    ],
)
def test_what_must_be_on_the_disk_says_so(use: Callable[[str], Any], store: Store) -> None:
    with pytest.raises(UsageError, match=f"cannot be at a URL: s3://{BUCKET}/file\\.\nGive a path on the disk"):
        use(f"s3://{BUCKET}/file")
    found = CliRunner().invoke(main_group, ["review", CKPT, "--html", "s3://bucket/file"])
    assert "'--html': s3://bucket/file is a URL, and this must be on the disk." in found.output


def test_the_widget_browses_a_bucket(store: Store) -> None:
    widgets = pytest.importorskip("dcptools.widgets")
    step = widgets.Open(f"s3://{BUCKET}")
    step.join(60)
    chooser = step.chooser
    chooser.browse.click()
    chooser.join(60)
    assert chooser.folders.here == f"s3://{BUCKET}"
    assert chooser.folders.entries == [["assets", ""], ["step-100", "DCP checkpoint"]]
    chooser.receive({"kind": "take", "at": 1})
    step.join(60)
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
