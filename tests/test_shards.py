"""What ``plan`` fixes before a byte is written: names, cut, headers, offsets, dtypes, the fingerprint."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import lookalikes, saved
from checkpoints.edit import editing
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import read_files
from safetensors.torch import save as safetensors_save
from torch import Tensor

from dcptools._parallel import default_workers
from dcptools.dtypes import TABLE
from dcptools.errors import FindingsError, NoModelWeights, UsageError
from dcptools.mapping import KeyMapping, preview
from dcptools.shards import PlanOptions, ShardFile, ShardPlan, plan
from dcptools.shards.memory import WORKER_BYTES
from dcptools.tensors import SCRATCH_BYTES
from dcptools.writer import write
from dcptools.writer.cut import Sizes


def checkpoint(directory: Path, state: dict[str, Tensor]) -> Path:
    """A checkpoint whose outputs have exactly these names."""
    return saved.save_chunks(directory, {f"model.{name}": [((0,) * t.dim(), t)] for name, t in state.items()})


def floats(**numel: int) -> dict[str, Tensor]:
    return {f"model.{name}": torch.zeros(count) for name, count in numel.items()}


def layout(planned: ShardPlan) -> dict[str, list[str]]:
    """Names by file, sorted."""
    return {file.filename: sorted(t.output.name for t in file.tensors) for file in planned.files}


def header(file: ShardFile) -> dict[str, Any]:
    length = int.from_bytes(file.header[:8], "little")
    assert length == len(file.header) - 8
    parsed: dict[str, Any] = json.loads(file.header[8:])
    return parsed


def written(planned: ShardPlan) -> dict[str, str]:
    return {t.output.name: t.dtype.name for file in planned.files for t in file.tensors}


def codes(planned: ShardPlan) -> dict[str, list[str]]:
    """Keys of the findings by code."""
    grouped: dict[str, list[str]] = {}
    for finding in planned.findings:
        grouped.setdefault(finding.code, []).append(finding.key)
    return grouped


# --- the cut into files -----------------------------------------------------------------------------------------


def test_one_file_has_the_plain_name_and_no_index(tmp_path: Path) -> None:
    planned = plan(checkpoint(tmp_path / "c", floats(a=4, b=4)))
    assert layout(planned) == {"model.safetensors": ["model.a", "model.b"]}
    assert planned.index is None


def test_names_are_sorted_as_strings_and_packed_greedily(tmp_path: Path) -> None:
    state = floats(**{f"layers.{n}.w": 4 for n in (1, 2, 9, 10)}, a=2, Z=2)
    planned = plan(checkpoint(tmp_path / "c", state), shard_size=16)  # of bfloat16: 8 elements
    assert layout(planned) == {
        "model-00001-of-00003.safetensors": ["model.Z", "model.a", "model.layers.1.w"],
        "model-00002-of-00003.safetensors": ["model.layers.10.w", "model.layers.2.w"],
        "model-00003-of-00003.safetensors": ["model.layers.9.w"],
    }


def test_a_file_may_be_exactly_full(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(a=4, b=4)))
    assert len(plan(mapping, 16).files) == 1
    assert len(plan(mapping, 15).files) == 2


def test_the_limit_counts_bytes_of_the_written_dtype(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(a=4, b=4)))
    assert [len(plan(mapping, 16, dtype).files) for dtype in ("bfloat16", "float16", "float32", "keep")] == [1, 1, 2, 2]


def test_a_tensor_larger_than_the_limit_gets_a_file_of_its_own(tmp_path: Path) -> None:
    planned = plan(checkpoint(tmp_path / "c", floats(a=1, b=100, c=1)), shard_size=16)
    assert list(layout(planned).values()) == [["model.a"], ["model.b"], ["model.c"]]
    assert [str(f) for f in planned.findings if f.code == "large-tensor"] == [
        "info[large-tensor] model.b: 200 B are more than the shard size of 16 B (the tensor gets a file of its own)"
    ]


def test_the_first_file_is_never_empty(tmp_path: Path) -> None:
    planned = plan(checkpoint(tmp_path / "c", floats(a=100, b=1)), shard_size=16)
    assert list(layout(planned).values()) == [["model.a"], ["model.b"]]


def test_the_default_limit_is_two_billion_bytes(tmp_path: Path) -> None:
    assert plan(checkpoint(tmp_path / "c", floats(a=1))).options.shard_size == 2_000_000_000


@settings(max_examples=60, deadline=None)
@given(
    numels=st.lists(st.integers(0, 30), min_size=1, max_size=9),
    limit=st.integers(1, 100),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_the_packing_is_greedy_and_keeps_the_limit(
    numels: list[int], limit: int, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = floats(**{f"t{n:02d}": count for n, count in enumerate(numels)})
    files = plan(checkpoint(tmp_path_factory.mktemp("law"), state), limit, dtype).files
    packed = [sorted((t.output.name, t.nbytes) for t in file.tensors) for file in files]
    assert [name for file in packed for name, _ in file] == sorted(state)
    for file in packed:
        assert sum(nbytes for _, nbytes in file) <= limit or len(file) == 1
    for file, after in pairwise(packed):
        assert sum(nbytes for _, nbytes in file) + after[0][1] > limit  # the next tensor did not fit
    count = len(files)
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert [file.filename for file in files] == (names if count > 1 else ["model.safetensors"])


def test_the_index_has_totals_and_the_weight_map(tmp_path: Path) -> None:
    state = {**floats(a=4, b=4), "model.n": torch.zeros(3, dtype=torch.int64)}
    planned = plan(checkpoint(tmp_path / "c", state), shard_size=16)
    assert planned.index == (
        b"{\n"
        b'  "metadata": {\n'
        b'    "total_parameters": 11,\n'
        b'    "total_size": 40\n'
        b"  },\n"
        b'  "weight_map": {\n'
        b'    "model.a": "model-00001-of-00002.safetensors",\n'
        b'    "model.b": "model-00001-of-00002.safetensors",\n'
        b'    "model.n": "model-00002-of-00002.safetensors"\n'
        b"  }\n"
        b"}\n"
    )
    assert (planned.total_bytes, planned.total_parameters) == (40, 11)
    assert planned.file_bytes == planned.total_bytes + sum(len(file.header) for file in planned.files)


# --- headers ----------------------------------------------------------------------------------------------------


def expected_header(state: dict[str, Tensor]) -> bytes:
    """What safetensors itself writes before the data."""
    whole = safetensors_save(state, {"format": "pt"})
    return whole[: 8 + int.from_bytes(whole[:8], "little")]


def storable() -> list[torch.dtype]:
    named = {str(dtype).removeprefix("torch."): dtype for dtype in saved.DTYPES}
    return [named[dtype.name] for dtype in TABLE.values() if dtype.code and dtype.name in named]


def test_the_header_is_that_of_safetensors_for_every_dtype(tmp_path: Path) -> None:
    state = {f"model.{n:02d}{'ab'[n % 2]}": saved.random_bits(dtype, (n % 3, 2)) for n, dtype in enumerate(storable())}
    (file,) = plan(checkpoint(tmp_path / "c", state), dtype="keep").files
    assert file.header == expected_header(state)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SHAPES = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=60, deadline=None)
@given(tensors=st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(storable())), min_size=1, max_size=5))
def test_the_header_is_that_of_safetensors_for_any_names(
    tensors: dict[str, tuple[list[int], torch.dtype]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = {f"model.-{name}": saved.random_bits(dtype, shape) for name, (shape, dtype) in tensors.items()}
    (file,) = plan(checkpoint(tmp_path_factory.mktemp("law"), state), dtype="keep").files
    assert file.header == expected_header(state)


ODD = ["quote\"'\\/", "größe.重み", "emoji \N{GRINNING FACE}", "<b>&amp;</b>", " ", "\x7f\x80\u2028\ufeff"]
ODD += ["".join(map(chr, range(32)))]  # every control character


def test_the_header_is_that_of_safetensors_for_odd_names(tmp_path: Path) -> None:
    state = {f"model.{name}": torch.zeros(2) for name in ODD}
    (file,) = plan(checkpoint(tmp_path / "c", state), dtype="keep").files
    assert file.header == expected_header(state)


def test_offsets_follow_each_other_and_end_with_the_file(tmp_path: Path) -> None:
    state = {**floats(a=3, b=0, c=5), "model.flags": torch.zeros(3, dtype=torch.bool)}
    (file,) = plan(checkpoint(tmp_path / "c", state)).files
    assert header(file) == {
        "__metadata__": {"format": "pt"},
        "model.a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
        "model.b": {"dtype": "BF16", "shape": [0], "data_offsets": [6, 6]},
        "model.c": {"dtype": "BF16", "shape": [5], "data_offsets": [6, 16]},
        "model.flags": {"dtype": "BOOL", "shape": [3], "data_offsets": [16, 19]},
    }
    assert [t.start - len(file.header) for t in file.tensors] == [0, 6, 6, 16]
    assert file.nbytes == len(file.header) + 19
    assert len(file.header) % 8 == 0


# --- dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32", "keep"])
def test_floats_are_cast_and_nothing_else_is(target: str, tmp_path: Path) -> None:
    state = {
        key: tensor for key, tensor in saved.dtype_state().items() if not key.endswith(("complex32", "complex128"))
    }
    casts = ("float64", "float32", "float16", "bfloat16")
    names = [key.removeprefix("model.model.") for key in state]
    assert written(plan(saved.save(tmp_path / "c", state), dtype=target)) == {
        f"model.{name}": target if name in casts and target != "keep" else name for name in names
    }


def test_the_first_exception_that_matches_a_name_wins(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(**{"a.norm.w": 1, "b.norm.w": 1, "a.w": 1, "w.a": 1})))
    exceptions = ["*.b.norm.*=keep", ("*.norm.w", "float16"), "*.b.*=bfloat16", "model.w*=float32"]
    assert written(plan(mapping, dtype_for=exceptions)) == {
        "model.a.norm.w": "float16",
        "model.b.norm.w": "float32",
        "model.a.w": "bfloat16",
        "model.w.a": "float32",
    }


def test_exceptions_are_on_output_names_and_split_at_the_last_equals_sign(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(**{"a=b": 1})), rename=["model.a(.*)=x\\1"])
    assert written(plan(mapping, dtype_for=["x=b=float32"])) == {"x=b": "float32"}


def test_an_exception_that_matches_nothing_is_a_warning(tmp_path: Path) -> None:
    planned = plan(checkpoint(tmp_path / "c", floats(a=1)), dtype_for=["*a=float32", "*b=float32"])
    assert [str(f) for f in planned.warnings if f.code == "pattern-unused"] == [
        "warning[pattern-unused]: '*b' of dtype_for= matched no name"
    ]


def test_an_exception_casts_no_integers(tmp_path: Path) -> None:
    state = {"model.n": torch.zeros(2, dtype=torch.int64), "model.c": torch.zeros(2, dtype=torch.complex64)}
    assert written(plan(checkpoint(tmp_path / "c", state), dtype_for=["*=float16"])) == {
        "model.n": "int64",
        "model.c": "complex64",
    }


def test_fp8_passes_through_with_a_warning_each(tmp_path: Path) -> None:
    state = {f"model.{n}": torch.zeros(2).to(torch.float8_e4m3fn) for n in "ab"}
    planned = plan(checkpoint(tmp_path / "c", {**state, **floats(c=1)}))
    assert [str(f) for f in planned.warnings if f.code == "float8"] == [
        f"warning[float8] model.{n}: float8_e4m3fn is written as it is and means nothing without its scale "
        "(dtype_for= casts it, if it has none)"
        for n in "ab"
    ]


def test_fp8_is_cast_when_asked_and_then_no_warning(tmp_path: Path) -> None:
    planned = plan(
        checkpoint(tmp_path / "c", {"model.a": torch.zeros(2).to(torch.float8_e5m2)}), dtype_for=["*=bfloat16"]
    )
    assert written(planned) == {"model.a": "bfloat16"}
    assert "float8" not in codes(planned)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_a_dtype_that_safetensors_lacks_is_an_error_and_all_are_named(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(2, dtype=torch.complex128), "model.b": torch.zeros(2, dtype=torch.complex32)}
    with pytest.raises(FindingsError) as caught:
        plan(checkpoint(tmp_path / "c", {**state, **floats(c=1)}))
    assert str(caught.value) == (
        "2 errors prevent the conversion:\n"
        "error[dtype-unsupported] model.a: safetensors has no type for complex128 (leave it out with exclude=)\n"
        "error[dtype-unsupported] model.b: safetensors has no type for complex32 (leave it out with exclude=)"
    )
    assert len(plan(preview(tmp_path / "c", exclude=["*.a", "*.b"])).files) == 1


@pytest.mark.parametrize(
    ("state", "options", "expected"),
    [
        (floats(a=9), {}, "bfloat16"),
        (floats(a=9), {"dtype": "keep"}, "float32"),
        (floats(a=9, b=2), {"dtype_for": ["*a=float32"]}, "float32"),
        (floats(a=9, b=90), {"dtype_for": ["*a=float32"]}, "bfloat16"),
        ({"model.n": torch.zeros(999, dtype=torch.int64), **floats(a=1)}, {}, "bfloat16"),
        ({"model.n": torch.zeros(9, dtype=torch.int64)}, {}, "float32"),
        ({"model.q": torch.zeros(99).to(torch.float8_e5m2), **floats(a=1)}, {}, "bfloat16"),
    ],
    ids=["cast", "keep", "most bytes", "most bytes, not most names", "integers do not count", "no float", "fp8"],
)
def test_the_dtype_for_the_config(
    state: dict[str, Tensor], options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert plan(checkpoint(tmp_path / "c", state), **options).written_dtype == expected


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("1", 1), ("2000000000", 2_000_000_000), ("2_000", 2000),
        ("500MB", 500_000_000), ("500mb", 500_000_000), ("5 GB", 5 * 10**9), ("5G", 5 * 10**9), (" 5GB ", 5 * 10**9),
        ("2GiB", 2 << 30), ("2gi", 2 << 30), ("1.5KiB", 1536), ("1.5kB", 1500), ("1TB", 10**12), ("1TiB", 1 << 40),
        ("10B", 10), ("1e9", 10**9), ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_sizes(text: str | int, size: int, tmp_path: Path) -> None:
    assert plan(checkpoint(tmp_path / "c", floats(a=1)), text).options.shard_size == size


@pytest.mark.parametrize(
    "text", [0, -1, True, None, "", "0", "0GB", "0.1", "-5GB", "5XB", "GB", "e9", "5 G B", "1,000", "٣"]
)
def test_what_is_no_size(text: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        plan(checkpoint(tmp_path / "c", floats(a=1)), text)
    assert str(caught.value) == (
        f"{text!r} is not a size in bytes.\nExpected a positive number, or one like 500MB, 5GB, 2GiB, 1e9."
    )


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(a=1)))
    message = "'int8' is not a dtype that can be written.\nExpected one of bfloat16, float16, float32, keep."
    for options in ({"dtype": "int8"}, {"dtype_for": ["*=int8"]}, {"dtype_for": [("*", "int8")]}):
        with pytest.raises(UsageError) as caught:
            plan(mapping, **options)
        assert str(caught.value) == message


@pytest.mark.parametrize("exception", ["float32", "=float32", ""])
def test_a_malformed_exception_is_refused(exception: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        plan(checkpoint(tmp_path / "c", floats(a=1)), dtype_for=[exception])
    assert str(caught.value) == (
        f"{exception!r} is not a rule for dtypes.\nExpected PATTERN=DTYPE, like '*.norm.weight=float32'."
    )


def test_strict_turns_warnings_into_errors(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(a=1)))
    with pytest.raises(FindingsError) as caught:
        plan(mapping, strict=True)
    assert str(caught.value) == (
        "1 error prevents the conversion (strict: warnings count as errors):\n"
        "error[assets-none]: no assets directory was given, so the result will have no config and no tokenizer "
        "(give the directory of config.json: model_assets_dir=)"
    )


def test_a_plan_of_the_same_options_is_the_same_plan(tmp_path: Path) -> None:
    """Whatever is an option is passed on whole, so that a plan that is made again is not laxer than the first."""
    mapping = replace(preview(checkpoint(tmp_path / "c", floats(a=4, b=2))), findings=())
    asked: dict[str, Any] = {"shard_size": 8, "dtype": "float16", "dtype_for": ["*a=float32"], "strict": True}
    first = plan(mapping, **asked)
    assert first.options == PlanOptions(8, "float16", (("*a", "float32"),), True)
    assert plan(mapping, **first.options.arguments()) == first
    assert {name for name in inspect.signature(plan).parameters if name != "mapping"} == set(asked)
    assert {field.name for field in dataclasses.fields(PlanOptions)} == set(asked)


def test_the_memory_of_a_worker_is_that_of_its_buffers() -> None:
    assert Sizes().slab_bytes + Sizes().block_bytes + SCRATCH_BYTES == WORKER_BYTES


def test_strict_is_content_without_warnings(tmp_path: Path) -> None:
    assets = lookalikes.huggingface(tmp_path / "assets")
    (assets / "tokenizer.json").write_text("{}")
    mapping = preview(saved.trained(tmp_path / "c"), model_assets_dir=assets)
    assert plan(mapping, strict=True).warnings == ()


def test_no_model_weights_has_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(NoModelWeights) as caught:
        plan(saved.no_model(tmp_path / "c"))
    first, *hint = str(caught.value).splitlines()
    assert first == "No model weights found!"
    assert " ".join(hint) == (
        f"{tmp_path / 'c'} holds an optimizer's state, not a model: "
        "give the checkpoint of the model, whose keys start with 'model.'; "
        "top-level keys here: optimizer, step; if the model is there, say where with layout= or root="
    )
    assert [f.code for f in caught.value.findings if f.severity == "error"] == ["no-model-weights"]


# --- the fingerprint --------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_in_another_process_and_at_another_path(tmp_path: Path) -> None:
    directory = saved.trained(tmp_path / "c")
    shutil.copytree(directory, tmp_path / "elsewhere")
    code = "import sys, dcptools; print(dcptools.plan(sys.argv[1], 999).fingerprint, 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "elsewhere")],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == [plan(directory, 999).fingerprint, "False"]  # and a plan needs no torch


def test_the_fingerprint_changes_with_whatever_changes_the_result(tmp_path: Path) -> None:
    directory = saved.trained(tmp_path / "c")
    mapping = preview(directory)

    def mapped(**options: Any) -> KeyMapping:
        return preview(directory, **options)

    plans = [
        plan(mapping),
        plan(mapping, 999),
        plan(mapping, 998, "float32"),
        plan(mapping, dtype="float16"),
        plan(mapping, dtype="keep"),
        plan(mapping, dtype_for=["*norm*=float32"]),
        plan(mapped(rename=[r"lm_head\.weight=head"])),
        plan(mapped(exclude=["*lm_head*"])),
        plan(saved.trained(tmp_path / "other")),  # the same names, shapes and values; another save
    ]
    assert len({planned.fingerprint for planned in plans}) == len(plans)


def test_the_fingerprint_changes_with_the_source_of_a_name(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "c", floats(a=2, b=2))
    swapped = preview(directory, rename=[r"model\.a=x", r"model\.b=model.a", "x=y"])
    straight = preview(directory, rename=[r"model\.b=x"])
    assert plan(swapped).fingerprint != plan(straight).fingerprint


def test_the_fingerprint_changes_with_any_of_the_files(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(a=4, b=4, c=4)))
    plans = [plan(mapping, 8), *(plan(mapping, 8, dtype_for=[f"model.{name}=float16"]) for name in "abc")]
    assert len({planned.fingerprint for planned in plans}) == 4


def test_the_fingerprint_does_not_change_with_what_is_only_said(tmp_path: Path) -> None:
    directory = saved.trained(tmp_path / "c")
    same = [plan(directory), plan(directory, "2GB"), plan(preview(directory, include=["*"]), dtype_for=["x=float32"])]
    assert len({planned.fingerprint for planned in same}) == 1


# --- memory, and how a plan shows itself ------------------------------------------------------------------------


def test_the_predicted_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    small = checkpoint(tmp_path / "small", {"model.w": torch.zeros(2, 2)})
    large = checkpoint(tmp_path / "large", {"model.w": torch.zeros(2, 2)})
    with editing(large) as metadata:  # 8 TB, on paper
        entry = metadata.state_dict_metadata["model.model.w"]
        entry.size = entry.chunks[0].sizes = torch.Size([1 << 20, 1 << 20])
    big = plan(large)
    assert big.total_bytes == 2 * 2**40
    assert math.isclose(big.peak_bytes, plan(small).peak_bytes, rel_tol=0.01)


READ_AND_PLAN = """
import sys
from dcptools import plan, preview
planned = plan(preview(sys.argv[1]), dtype="keep")
with open("/proc/self/status") as status:
    peak = next(line for line in status if line.startswith("VmHWM:")).split()[1]
print(1024 * int(peak), planned.peak_bytes_with(1))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of this very process is known on Linux")
@pytest.mark.parametrize(("kind", "chunks"), [("many-chunks", 200_000), ("cut", 32_000)])
def test_the_predicted_memory_counts_chunks(tmp_path: Path, kind: str, chunks: int) -> None:
    """Of checkpoints that are mostly metadata, in 128 files; each record of the second says something new."""
    root, directory = Path(__file__).parents[1], str(tmp_path / "c")
    subprocess.run([sys.executable, "-m", "tests.bench.maker", kind, directory, str(chunks)], cwd=root, check=True)
    command = [sys.executable, "-c", READ_AND_PLAN, directory]
    peak, predicted = map(
        int, subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    )
    assert predicted / 1.5 <= peak <= predicted


def test_the_predicted_memory_counts_workers_and_torch(tmp_path: Path) -> None:
    mapping = preview(checkpoint(tmp_path / "c", floats(a=4)))
    cast, keep = plan(mapping), plan(mapping, dtype="keep")
    assert cast.peak_bytes == cast.peak_bytes_with(default_workers())
    assert cast.peak_bytes_with(8) > cast.peak_bytes_with(1) > keep.peak_bytes_with(1)


def test_the_text_of_a_plan(tmp_path: Path) -> None:
    planned = plan(checkpoint(tmp_path / "c", floats(a=4, b=4, c=4)), 16)
    first, *rest = str(planned).splitlines()
    total = sum(file.nbytes for file in planned.files)
    said = f"2 files, {total} B in total (12 elements as bfloat16), at most 16 B of values per file; about "
    assert first.startswith(said)
    sizes = [f"{file.nbytes} B" for file in planned.files]
    assert rest == [
        "file                                tensors    bytes  first    last",
        "--------------------------------  ---------  -------  -------  -------",
        f"model-00001-of-00002.safetensors          2  {sizes[0]:>7}  model.a  model.b",
        f"model-00002-of-00002.safetensors          1  {sizes[1]:>7}  model.c  model.c",
        f"fingerprint {planned.fingerprint[:16]}",
    ]


def test_the_frames_and_the_json_of_a_plan(tmp_path: Path) -> None:
    planned = plan(checkpoint(tmp_path / "c", floats(a=4, b=4, c=4)), 16)
    one, two = planned.files
    assert planned.to_frame().to_dict("records")[-1] == {
        "file": two.filename,
        "name": "model.c",
        "dtype": "bfloat16",
        "shape": (4,),
        "start": len(two.header),
        "nbytes": 8,
    }
    assert planned.files_frame().to_dict("list") == {
        "file": [one.filename, two.filename],
        "tensors": [2, 1],
        "nbytes": [one.nbytes, two.nbytes],
        "first": ["model.a", "model.c"],
        "last": ["model.b", "model.c"],
    }
    plain = json.loads(json.dumps(planned.to_json()))
    assert plain["files"][0] == {"filename": one.filename, "nbytes": one.nbytes, "tensors": 2}
    assert (plain["fingerprint"], plain["total_bytes"], plain["dtype"]) == (planned.fingerprint, 24, "bfloat16")


def test_what_the_plan_says_is_what_is_written(tmp_path: Path) -> None:
    planned = plan(saved.trained(tmp_path / "c"), 999)
    write(planned, tmp_path / "out", fsync=False)
    for file in planned.files:
        content = (tmp_path / "out" / file.filename).read_bytes()
        assert (content[: len(file.header)], len(content)) == (file.header, file.nbytes)
    assert (tmp_path / "out" / "model.safetensors.index.json").read_bytes() == planned.index


@pytest.mark.parametrize("again", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy])
def test_a_plan_can_be_sent_to_another_process(again: Any, tmp_path: Path) -> None:
    planned = plan(saved.trained(tmp_path / "c"), 1000)
    other = again(planned)
    assert other == planned and other is not planned and other.mapping == planned.mapping
    assert (other.fingerprint, str(other)) == (planned.fingerprint, str(planned))
    assert other != plan(planned.mapping, 500)
    write(other, tmp_path / "a", fsync=False)
    write(planned, tmp_path / "b", fsync=False)
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")
