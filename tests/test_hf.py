"""A HuggingFace model is read by its headers and index: what is there, and everything that is wrong with it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import models, saved
from safetensors.torch import load_file, save_file

from dcptools.errors import NotAModel
from dcptools.hf import Model, is_model, read_model

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def two_files(directory: Path) -> Path:
    """Two shards and their index, as ``save_pretrained`` leaves them."""
    directory.mkdir()
    parts = {FIRST: {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
             SECOND: {"c": torch.tensor(7)}}  # fmt: skip
    for name, tensors in parts.items():
        save_file(tensors, directory / name, {"format": "pt"})
    weight_map = {key: name for name, tensors in parts.items() for key in tensors}
    write_index(directory, {"metadata": {"total_size": 40, "total_parameters": 11}, "weight_map": weight_map})
    return directory


def write_index(directory: Path, content: Any) -> None:
    (directory / INDEX).write_text(json.dumps(content))


def edit_index(directory: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads((directory / INDEX).read_text())
    edit(content)
    write_index(directory, content)


def header_file(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def said(model: Model) -> list[str]:
    assert all(finding.severity == "error" for finding in model.findings)
    return [f"{finding.code} {finding.key}: {finding.message}" for finding in model.findings]


class TestSound:
    def test_every_weight_with_its_place(self, tmp_path: Path) -> None:
        model = read_model(two_files(tmp_path / "m"))
        assert (model.findings, model.index, list(model.weights)) == ((), INDEX, ["a", "b", "c"])
        for name, weight in model.weights.items():
            values = load_file(tmp_path / "m" / weight.file)[name]
            stored = (tmp_path / "m" / weight.file).read_bytes()[weight.start : weight.start + weight.nbytes]
            assert stored == values.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert (weight.shape, f"torch.{weight.dtype.name}") == (tuple(values.shape), str(values.dtype))
        assert [(f.name, f.metadata) for f in model.files] == [(n, (("format", "pt"),)) for n in (FIRST, SECOND)]
        assert model.to_frame()["numel"].tolist() == [6, 4, 1]
        assert "3 weights with 11 elements in 40 B, 2 files" in str(model)

    def test_an_index_or_a_single_file_will_do(self, tmp_path: Path) -> None:
        directory = two_files(tmp_path / "m")
        assert read_model(directory / INDEX).weights.keys() == {"a", "b", "c"}
        assert read_model(directory / SECOND).weights.keys() == {"c"}

    @pytest.mark.parametrize("stem", ["model", "adapter_model", "diffusion_pytorch_model"])
    def test_a_model_of_one_file_needs_no_index(self, stem: str, tmp_path: Path) -> None:
        save_file({"w": torch.ones(2)}, tmp_path / f"{stem}.safetensors")
        model = read_model(tmp_path)
        assert (list(model.weights), model.index, model.findings) == (["w"], "", ())

    def test_every_dtype_that_safetensors_has(self, tmp_path: Path) -> None:
        no_name = (torch.complex32, torch.complex128)
        state = {key: value for key, value in saved.dtype_state().items() if value.dtype not in no_name}
        save_file(state, tmp_path / "model.safetensors")
        found = {name: f"torch.{weight.dtype.name}" for name, weight in read_model(tmp_path).weights.items()}
        assert found == {name: str(value.dtype) for name, value in state.items()}

    def test_what_transformers_saves_in_parts(self, tmp_path: Path) -> None:
        import transformers

        config = transformers.Qwen3Config(**models.MODELS["qwen3"][2])
        live = transformers.Qwen3ForCausalLM(config)
        live.save_pretrained(tmp_path, max_shard_size="2KB")
        model = read_model(tmp_path)
        assert (model.findings, model.index) == ((), INDEX)
        assert model.weights.keys() == {name for name in live.state_dict() if name != "lm_head.weight"}

    def test_it_can_be_sent_to_another_process(self, tmp_path: Path) -> None:
        model = read_model(two_files(tmp_path / "m"))
        for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert (twin.weights, twin.files) == (model.weights, model.files)
            with pytest.raises(TypeError):
                twin.weights["x"] = None


class TestIndex:
    @pytest.mark.parametrize(
        ("edit", "expected"),
        [
            (
                lambda content: content["weight_map"].update(ghost=FIRST),
                f"model-index ghost: the index says that it is in {FIRST}, but it is not",
            ),
            (
                lambda content: content["weight_map"].pop("b"),
                f"model-index b: it is in {FIRST}, but the index does not name it",
            ),
            (
                lambda content: content["weight_map"].update(a=SECOND),
                f"model-index a: the index says that it is in {SECOND}, but it is in {FIRST}",
            ),
            (
                lambda content: content["metadata"].update(total_size=41),
                f"model-index {INDEX}: total_size is 41, but the weights have 40 bytes",
            ),
            (
                lambda content: content["metadata"].update(total_parameters=9),
                f"model-index {INDEX}: total_parameters is 9, but the weights have 11 elements",
            ),
            (
                lambda content: content["weight_map"].update(x="../../etc/x.safetensors"),
                "model-index x: the index says that it is in '../../etc/x.safetensors', which is not in the directory",
            ),
            (
                lambda content: content["weight_map"].update(x=["y"]),
                "model-index x: the index says that it is in ['y'], which is not in the directory",
            ),
            (
                lambda content: content["weight_map"].update(x="lost.safetensors"),
                "model-file lost.safetensors: the file is missing",
            ),
        ],
    )
    def test_what_it_says_is_compared_with_the_files(
        self, edit: Callable[[Any], None], expected: str, tmp_path: Path
    ) -> None:
        directory = two_files(tmp_path / "m")
        edit_index(directory, edit)
        assert said(read_model(directory)) == [expected]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"weight_map": 3}', b"\xff", b"[" * 100_000])
    def test_a_broken_one_is_said_to_be_broken(self, content: bytes, tmp_path: Path) -> None:
        directory = two_files(tmp_path / "m")
        (directory / INDEX).write_bytes(content)
        assert [line.split(":")[0] for line in said(read_model(directory))] == [f"model-index {INDEX}"]

    def test_what_is_said_of_a_long_one_is_short(self, tmp_path: Path) -> None:
        directory = two_files(tmp_path / "m")
        metadata = {"total_size": ["x" * 9000], "total_parameters": {"x": [1] * 9000}}
        write_index(directory, {"metadata": metadata, "weight_map": {"a": FIRST, "b": FIRST, "c": ["y"] * 9000}})
        lines = said(read_model(directory))
        assert len(lines) == 3 and max(map(len, lines)) < 400

    def test_a_name_in_two_files(self, tmp_path: Path) -> None:
        directory = two_files(tmp_path / "m")
        save_file({"c": torch.tensor(7), "a": torch.ones(1)}, directory / SECOND)
        assert f"model-file a: it is in {FIRST} and in {SECOND}" in said(read_model(directory))


ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


class TestHeader:
    @pytest.mark.parametrize(
        ("header", "data", "expected"),
        [
            (b"{}}", b"", "the header: it is not JSON: Extra data"),
            (b"[]", b"", "the header: expected an object, found []"),
            (b" {}", b"", "the header: expected an object"),  # the safetensors library wants the brace first
            ("{}".encode("utf-16-le"), b"", "the header: it is not JSON"),
            (b"[" * 100_000, b"", "the header: it nests more deeply than any tensors need"),
            (b'{"a": {}, "a": {}}', b"", "a name occurs in it twice"),
            ({"a": 3}, b"", "['a']: expected an object, found 3"),
            ({"a": {**ONE, "dtype": "X9"}}, b"12", "['a'].dtype: expected a dtype of safetensors that dcptools knows"),
            ({"a": {**ONE, "dtype": ["U8"]}}, b"12", "['a'].dtype: expected a dtype of safetensors"),
            ({"a": {**ONE, "shape": [-2]}}, b"12", "['a'].shape: expected a list of numbers below 2**62, found [-2]"),
            ({"a": {**ONE, "shape": [True, 2]}}, b"12", "['a'].shape: expected a list of numbers below 2**62"),
            ({"a": {**ONE, "shape": [3]}}, b"12", "['a'].data_offsets: expected two places that are 3 bytes apart"),
            ({"a": {**ONE, "data_offsets": [1, 3]}}, b"123", "the values do not follow each other at byte 0"),
            ({"a": ONE, "b": ONE}, b"12", "the values do not follow each other at byte 2"),
            ({"\ud800": ONE}, b"12", "expected a string of Unicode"),
            ({"a": ONE}, b"123", "it has 71 bytes, and its header says 70"),
            ({"a": ONE}, b"1", "it has 69 bytes, and its header says 70"),
            ({"__metadata__": {"x": 1}}, b"", "__metadata__['x']: expected a string, found 1"),
        ],
    )
    def test_a_header_that_contradicts_itself(self, header: Any, data: bytes, expected: str, tmp_path: Path) -> None:
        header_file(tmp_path / "model.safetensors", header, data)
        (found,) = said(read_model(tmp_path))
        assert found.startswith("model-file model.safetensors: ")
        assert expected in found

    @pytest.mark.parametrize("content", [b"", b"1234567", (2**63).to_bytes(8, "little"), b"\xff" * 8 + b"{}"])
    def test_a_file_that_is_none(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(content)
        (found,) = said(read_model(tmp_path))
        assert "the header: expected 2 to" in found or "bytes too early" in found
        assert not read_model(tmp_path).weights

    def test_a_name_cannot_drive_a_terminal(self, tmp_path: Path) -> None:
        header_file(tmp_path / "model.safetensors", {"\x1b[31m": 3})
        assert "\x1b" not in str(read_model(tmp_path))


def test_chunks_of_a_distributed_save_are_no_weights(tmp_path: Path) -> None:
    model = read_model(saved.hf_dcp(tmp_path / "c"))
    assert all("holds chunks that torch's HuggingFaceStorageWriter saved" in line for line in said(model))
    assert len(model.findings) == len(model.files) > 0


class TestNotAModel:
    def test_a_message_for_each_other_thing(self, tmp_path: Path) -> None:
        for name in ("empty", "pickled"):
            (tmp_path / name).mkdir()
        (tmp_path / "pickled" / "pytorch_model.bin").touch()
        (tmp_path / "text.txt").touch()
        checkpoint = saved.bare(tmp_path / "dcp")
        for name, expected in {
            "nothing": "does not exist",
            "text.txt": "is not a safetensors file",
            "empty": "has no safetensors files.\nGive the directory of a model",
            "pickled": "pytorch_model.bin may hold weights as pickles",
            "dcp": "is a distributed checkpoint",
        }.items():
            with pytest.raises(NotAModel, match=expected):
                read_model(tmp_path / name)
            assert not is_model(tmp_path / name)
        assert not is_model(checkpoint)
        assert is_model(two_files(tmp_path / "m")) and is_model(tmp_path / "m" / INDEX)
