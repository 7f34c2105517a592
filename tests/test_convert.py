"""``convert``: the whole line in one call, and that it is nothing but the line."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import broken, lookalikes, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

import dcptools
from dcptools.errors import Cancelled, DcptoolsError, FindingsError, NoModelWeights, NotACheckpoint, OutputExists


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory; directories too, with a slash."""
    return {
        str(path.relative_to(directory)) + ("/" if path.is_dir() else ""): b"" if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }


def loaded(directory: Path) -> dict[str, Tensor]:
    """All tensors of a written model, found through the index where there is one."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return load_file(directory / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    files = {name: load_file(directory / name) for name in set(weight_map.values())}
    assert {(key, name) for name, tensors in files.items() for key in tensors} == set(weight_map.items())
    return {key: files[name][key] for key, name in weight_map.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == tensor.dtype and torch.equal(found[key], tensor) for key, tensor in expected.items()
    )


def test_the_result_has_the_names_and_the_cast_values_of_the_live_model(tmp_path: Path) -> None:
    state = saved.model_state()
    dcptools.convert(saved.trained(tmp_path / "c", state), tmp_path / "out", shard_size=999)
    assert same(loaded(tmp_path / "out"), {name: tensor.bfloat16() for name, tensor in state.items()})


def test_keep_gives_every_bit_back(tmp_path: Path) -> None:
    state = saved.model_state()
    dcptools.convert(saved.trained(tmp_path / "c", state), tmp_path / "out", dtype="keep")
    assert same(loaded(tmp_path / "out"), state)


def test_the_file_is_what_safetensors_would_write(tmp_path: Path) -> None:
    state = saved.model_state()
    dcptools.convert(saved.trained(tmp_path / "c", state), tmp_path / "out", dtype="keep")
    save_file(state, tmp_path / "expected", {"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_the_default_output_is_hf_ckpt_in_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = saved.trained(tmp_path / "c")
    before = tree(checkpoint)
    report = dcptools.convert(checkpoint)
    assert report.save_dir == str(checkpoint / "hf_ckpt")
    after = tree(checkpoint)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["hf_ckpt/", "hf_ckpt/model.safetensors"]
    dcptools.read(checkpoint)  # is still one


def test_it_is_the_four_steps(tmp_path: Path) -> None:
    directory = saved.app_state(tmp_path / "c")
    assets = lookalikes.huggingface(tmp_path / "assets")
    mapping_options: dict[str, Any] = {
        "model_assets_dir": assets, "root": "app.model", "exclude": ["*.k_norm.*"],
        "rename": [r"lm_head\.(.*)=head.\1"],
    }  # fmt: skip
    plan_options: dict[str, Any] = {"shard_size": "1kB", "dtype": "float16", "dtype_for": ["*norm*=float32"]}
    mapping = dcptools.preview(dcptools.read(directory), **mapping_options)
    report = dcptools.write(dcptools.plan(mapping, **plan_options), tmp_path / "steps", fsync=False)
    whole = dcptools.convert(directory, tmp_path / "whole", fsync=False, **mapping_options, **plan_options)
    assert tree(tmp_path / "whole") == tree(tmp_path / "steps")
    assert (whole.fingerprint, whole.files, whole.assets) == (report.fingerprint, report.files, report.assets)


def test_every_option_of_the_steps_is_one_of_convert_with_the_same_default() -> None:
    def options(function: Callable[..., Any]) -> dict[str, Any]:
        return {
            name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty
        }

    steps = {**options(dcptools.preview), **options(dcptools.plan), **options(dcptools.write)}
    del steps["sizes"], steps["make_engine"]  # to measure, and for ranks; the result does not depend on them
    assert options(dcptools.convert) == {"save_dir": None, "verify": False, "report": None, **steps}


def test_a_checkpoint_that_was_read_can_be_given(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.trained(tmp_path / "c"))
    assert dcptools.convert(checkpoint).save_dir == str(tmp_path / "c" / "hf_ckpt")


def test_options_of_the_write_are_passed_on(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    checkpoint = saved.trained(tmp_path / "c")
    report = dcptools.convert(checkpoint, tmp_path / "out", workers=1, progress=lambda *call: calls.append(call))
    assert report.workers == 1
    assert calls[-1][:2] == (report.total_bytes, report.total_bytes)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        dcptools.convert(checkpoint, tmp_path / "out2", cancel=cancel)
    assert not (tmp_path / "out2").exists()


def test_overwrite_replaces_the_model(tmp_path: Path) -> None:
    checkpoint = saved.trained(tmp_path / "c")
    dcptools.convert(checkpoint, tmp_path / "out", shard_size=999)
    before = tree(tmp_path / "out")
    with pytest.raises(OutputExists):
        dcptools.convert(checkpoint, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    dcptools.convert(checkpoint, tmp_path / "out", overwrite=True)
    assert list(tree(tmp_path / "out")) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("make", "options", "error"),
    [
        (saved.no_model, {}, NoModelWeights),
        (saved.trained, {"exclude": ["*"]}, NoModelWeights),
        (broken.hole, {}, FindingsError),
        (lookalikes.flat_parameters, {}, FindingsError),
        (saved.colliding, {}, FindingsError),
        (saved.trained, {"strict": True}, FindingsError),
        (lookalikes.steps, {}, NotACheckpoint),
        (saved.trained, {"shard_size": 0}, DcptoolsError),
    ],
    ids=["no model", "all excluded", "hole", "flat", "collision", "strict", "no checkpoint", "usage"],
)
def test_a_refusal_writes_nothing(
    make: Callable[[Path], Any], options: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    make(tmp_path / "c")
    before = tree(tmp_path)
    with pytest.raises(error):
        dcptools.convert(tmp_path / "c", **options)
    with pytest.raises(error):
        dcptools.convert(tmp_path / "c", tmp_path / "new" / "out", **options)
    assert tree(tmp_path) == before


ORDERS = """
import itertools, sys, types
statements = (
    "import dcptools", "import dcptools.convert", "from dcptools import convert",
    "from dcptools.convert import convert", "import dcptools.cli", "import dcptools.convert.__main__",
    "import dcptools.writer, dcptools.checkpoint",
)
for order in itertools.permutations(statements, 2):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dcptools"]:
        del sys.modules[name]
    for statement in order:
        exec(statement, {})
    assert isinstance(sys.modules["dcptools"].convert, types.FunctionType), order
    assert isinstance(sys.modules["dcptools.convert"], types.ModuleType), order
print("as it should be")
"""


def test_convert_is_the_function_in_whatever_order_things_are_imported() -> None:
    run = subprocess.run([sys.executable, "-W", "error", "-c", ORDERS], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("as it should be\n", "")
