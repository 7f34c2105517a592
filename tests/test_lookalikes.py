"""What somebody reads who points at the wrong thing: every text as a whole, with HERE for the test's directory."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import broken, hostile, lookalikes, saved

import dcptools
import dcptools.storage.source as source_module
from dcptools.errors import BrokenCheckpoint, DcptoolsError, NotACheckpoint, UnsafeMetadata, UnsupportedCheckpoint

EXPECTED = "A distributed checkpoint is a directory with .metadata and __<rank>_<n>.distcp files."
COPY_AGAIN = "Copy or download the checkpoint again, use another one, or save again."


def error(path: Path, tmp_path: Path) -> DcptoolsError:
    with pytest.raises(DcptoolsError) as caught:
        dcptools.read(path)
    return type(caught.value)(str(caught.value).replace(str(tmp_path), "HERE"))


def assert_error(path: Path, tmp_path: Path, kind: type[DcptoolsError], *lines: str) -> None:
    found = error(path, tmp_path)
    assert str(found) == "\n".join(lines)
    assert type(found) is kind


# --- paths ------------------------------------------------------------------------------------------------------


def test_no_such_directory(tmp_path: Path) -> None:
    assert_error(tmp_path / "step_10", tmp_path, NotACheckpoint, "There is no directory HERE/step_10.", EXPECTED)


def test_a_file(tmp_path: Path) -> None:
    lookalikes.plain_file(tmp_path / "model.pt")
    assert_error(tmp_path / "model.pt", tmp_path, NotACheckpoint, "HERE/model.pt is a file.", EXPECTED)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    path = saved.trained(tmp_path / "step_10") / name
    expected = (f"HERE/step_10/{name} is a file.", "Give its directory: HERE/step_10")
    assert_error(path, tmp_path, NotACheckpoint, *expected)


def test_an_empty_directory(tmp_path: Path) -> None:
    lookalikes.empty(tmp_path / "run")
    assert_error(tmp_path / "run", tmp_path, NotACheckpoint, "HERE/run is an empty directory.", EXPECTED)


def test_something_else(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"line\n{number}").touch()
    listed = r"line\n0, line\n1, line\n2, line\n3, line\n4 and 2 more"
    expected = f"HERE is not a distributed checkpoint: it has {listed} and no .metadata."
    assert_error(tmp_path, tmp_path, NotACheckpoint, expected, EXPECTED)


def test_a_path_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 0 would not stop root, who may run this test."""
    saved.trained(tmp_path / "step_10")

    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(source_module, "open_regular", refuse)
    expected = ("HERE/step_10/.metadata cannot be read: Permission denied.", "Check the permissions.")
    assert_error(tmp_path / "step_10", tmp_path, NotACheckpoint, *expected)


# --- a checkpoint is near ---------------------------------------------------------------------------------------


def test_parents_of_steps_propose_the_latest(tmp_path: Path) -> None:
    lookalikes.steps(tmp_path / "run", ("global_step_9", "global_step_10", "global_step_1"))
    assert_error(
        tmp_path / "run",
        tmp_path,
        NotACheckpoint,
        "HERE/run is not a checkpoint itself, but contains global_step_1, global_step_10, global_step_9.",
        "Give one of them, for example: HERE/run/global_step_10",
    )


def test_parents_of_model_and_optimizer_propose_the_model(tmp_path: Path) -> None:
    lookalikes.accelerate(tmp_path / "checkpoint-500")
    assert_error(
        tmp_path / "checkpoint-500",
        tmp_path,
        NotACheckpoint,
        "HERE/checkpoint-500 is not a checkpoint itself, but contains optimizer_0, pytorch_model_fsdp_0.",
        "Give one of them, for example: HERE/checkpoint-500/pytorch_model_fsdp_0",
    )


def test_parents_of_one_step_name_it(tmp_path: Path) -> None:
    lookalikes.veomni(tmp_path / "checkpoints")
    assert_error(
        tmp_path / "checkpoints",
        tmp_path,
        NotACheckpoint,
        "HERE/checkpoints is not a checkpoint itself, but contains global_step_10.",
        "Give that one: HERE/checkpoints/global_step_10",
    )


def test_grandparents_look_two_levels_down(tmp_path: Path) -> None:
    lookalikes.steps(tmp_path / "output" / "checkpoints")
    (tmp_path / "output" / "train.log").touch()
    assert_error(
        tmp_path / "output",
        tmp_path,
        NotACheckpoint,
        "HERE/output is not a checkpoint itself, but contains checkpoints/global_step_10, "
        "checkpoints/global_step_9, checkpoints/step-100.",
        "Give one of them, for example: HERE/output/checkpoints/step-100",
    )


# --- half a checkpoint ------------------------------------------------------------------------------------------


def test_an_interrupted_save(tmp_path: Path) -> None:
    lookalikes.interrupted(tmp_path / "step_10")
    assert_error(
        tmp_path / "step_10",
        tmp_path,
        NotACheckpoint,
        "HERE/step_10 has .metadata.tmp and no .metadata: the save was interrupted, or is still running.",
        "Use an earlier checkpoint, or save again.",
    )


def test_data_without_metadata(tmp_path: Path) -> None:
    lookalikes.distcp_only(tmp_path / "step_10")
    assert_error(
        tmp_path / "step_10",
        tmp_path,
        NotACheckpoint,
        "HERE/step_10 has .distcp files (__0_0.distcp) and no .metadata, which is written last.",
        "Either the save was interrupted: use an earlier checkpoint, or save again.",
        "Or it was left behind, because `cp step_10/*` copies no hidden files: copy .metadata too.",
    )


def test_metadata_without_data_can_be_looked_at(tmp_path: Path) -> None:
    checkpoint = dcptools.read(lookalikes.metadata_only(tmp_path / "step_10"))
    assert {(f.code, f.message) for f in checkpoint.errors} == {("missing-file", "there is no file __0_0.distcp")}
    assert {f.key for f in checkpoint.errors} == {*checkpoint.tensors, *checkpoint.objects}


def test_empty_metadata(tmp_path: Path) -> None:
    broken.empty_metadata(tmp_path / "a")
    empty = "HERE/a/.metadata is empty: the save was interrupted."
    assert_error(tmp_path / "a", tmp_path, BrokenCheckpoint, empty, COPY_AGAIN)


def test_truncated_metadata(tmp_path: Path) -> None:
    broken.truncated_metadata(tmp_path / "a")
    cut = "HERE/a/.metadata ends in the middle of a value: it is truncated."
    assert_error(tmp_path / "a", tmp_path, BrokenCheckpoint, cut, COPY_AGAIN)


def test_garbage_metadata(tmp_path: Path) -> None:
    broken.garbage_metadata(tmp_path / "a")
    pointer = "HERE/a/.metadata is not a pickle: it starts with b'version https://git-lfs.'."
    assert_error(tmp_path / "a", tmp_path, BrokenCheckpoint, pointer, COPY_AGAIN)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    broken.not_metadata(tmp_path / "a")
    other = "HERE/a/.metadata is a pickle of tuple, and not of the Metadata of a distributed checkpoint."
    assert_error(tmp_path / "a", tmp_path, BrokenCheckpoint, other, COPY_AGAIN)


def test_metadata_that_is_a_directory(tmp_path: Path) -> None:
    broken.metadata_is_directory(tmp_path / "a")
    assert_error(tmp_path / "a", tmp_path, NotACheckpoint, "HERE/a/.metadata is not a file.", EXPECTED)


# --- DCP without .metadata --------------------------------------------------------------------------------------


def test_metadata_of_each_rank(tmp_path: Path) -> None:
    for rank in range(4):
        (tmp_path / f"__{rank}.metadata").write_bytes(b"\x80\x04N.")
        (tmp_path / f"__{rank}_0.distcp").touch()
    files = "__0.metadata, __1.metadata, __2.metadata and 1 more"
    assert_error(
        tmp_path,
        tmp_path,
        UnsupportedCheckpoint,
        f"HERE has a metadata file for each rank ({files}) and no .metadata.",
        "It was saved with dcp.save(..., use_collectives=False), so nothing in it describes the whole tensors.",
        "Load it in the training script, with as many ranks as saved it, and save it again with use_collectives=True.",
    )


# --- other people's checkpoints ---------------------------------------------------------------------------------

FROM_PRETRAINED = "There is nothing to convert: load it with from_pretrained."
TORCH_SAVE = "Load it in the training script, and save it with torch.distributed.checkpoint.save."
OTHERS: dict[str, tuple[str, str, str]] = {
    "huggingface": ("a HuggingFace model already", "model.safetensors", FROM_PRETRAINED),
    "pytorch_bin": ("a HuggingFace model already", "pytorch_model.bin", FROM_PRETRAINED),
    "verl": (
        "an FSDP checkpoint of verl",
        "model_world_size_4_rank_0.pt, model_world_size_4_rank_1.pt, model_world_size_4_rank_2.pt and 1 more",
        "Merge it with verl's own model merger: python -m verl.model_merger merge --backend fsdp ...",
    ),
    "deepspeed": (
        "a DeepSpeed checkpoint",
        "zero_to_fp32.py",
        "Convert it with the script zero_to_fp32.py, which DeepSpeed puts beside the checkpoint.",
    ),
    "megatron_legacy": (
        "a Megatron-LM checkpoint in its old format",
        "iter_0000010, latest_checkpointed_iteration.txt",
        "Convert it with Megatron's own tools, or save it with --ckpt-format torch_dist.",
    ),
    "consolidated": ("a checkpoint of torch.save", "consolidated.pth", TORCH_SAVE),
}


def assert_other(directory: Path, tmp_path: Path, what: str, files: str, hint: str) -> None:
    expected = f"HERE/a is {what}, not a distributed checkpoint (it has {files})."
    assert_error(directory, tmp_path, NotACheckpoint, expected, hint)


@pytest.mark.parametrize("name", OTHERS)
def test_the_checkpoint_of(name: str, tmp_path: Path) -> None:
    getattr(lookalikes, name)(tmp_path / "a")
    assert_other(tmp_path / "a", tmp_path, *OTHERS[name])


@pytest.mark.parametrize(
    ("file", "what", "hint"),
    [
        ("model-00001-of-00002.safetensors", "a HuggingFace model already", FROM_PRETRAINED),
        ("adapter_model.safetensors", "a HuggingFace model already", FROM_PRETRAINED),
        ("pytorch_model-00001-of-00002.bin", "a HuggingFace model already", FROM_PRETRAINED),
        ("pytorch_model_fsdp.bin", "a checkpoint of torch.save", TORCH_SAVE),  # accelerate, FULL_STATE_DICT
        ("pytorch_model_fsdp_rank3.bin", "a checkpoint of torch.save", TORCH_SAVE),  # accelerate, LOCAL_STATE_DICT
        ("last.ckpt", "a checkpoint of torch.save", TORCH_SAVE),
    ],
)
def test_a_directory_with(file: str, what: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / file).touch()
    assert_other(tmp_path / "a", tmp_path, what, file, hint)


@pytest.mark.parametrize("step", ["global_step5", "."])
def test_deepspeed_is_known_with_and_without_its_script(step: str, tmp_path: Path) -> None:
    (lookalikes.deepspeed(tmp_path / "a") / "zero_to_fp32.py").unlink()
    if step != ".":
        found = str(error(tmp_path / "a" / step, tmp_path))
        assert found.startswith("HERE/a/global_step5 is a DeepSpeed checkpoint")
    else:  # `latest` alone is what anybody may call a link to the latest step
        assert "DeepSpeed" not in str(error(tmp_path / "a", tmp_path))


# --- readable, and still not what a converter needs -------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightning", "torchtitan", "lora_adapter"])
def test_checkpoints_of_other_trainers_are_read(name: str, tmp_path: Path) -> None:
    checkpoint = dcptools.read(getattr(lookalikes, name)(tmp_path / "a"))
    assert checkpoint.findings == ()
    assert len(checkpoint.tensors) > 1


def test_flat_parameters_are_found_in_preview(tmp_path: Path) -> None:
    mapping = dcptools.preview(lookalikes.flat_parameters(tmp_path / "a"))
    assert {(f.key, f.code) for f in mapping.errors} == {(k, "flat-parameter") for k in mapping.checkpoint.tensors}
    assert {(f.message, f.hint) for f in mapping.errors} == {
        (
            "a flat parameter of FSDP1 holds many tensors without names and shapes",
            "save with FSDP.set_state_dict_type(SHARDED_STATE_DICT) or with get_model_state_dict",
        )
    }


# --- all of them ------------------------------------------------------------------------------------------------


def _makers(module: Any) -> dict[str, Callable[[Path], Any]]:
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in functions if f.__module__ == module.__name__ and name[0] != "_"}


@pytest.mark.parametrize("name", _makers(lookalikes))
def test_every_message_has_two_to_four_lines_and_its_errors_are_the_builtins_too(name: str, tmp_path: Path) -> None:
    path = _makers(lookalikes)[name](tmp_path / "a")
    if (path / ".metadata").exists():
        return
    found = error(path, tmp_path)
    assert isinstance(found, FileNotFoundError | NotImplementedError)
    lines = str(found).splitlines()
    assert 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"[A-Z].*[.\w)]", line) for line in lines), lines


def test_a_message_about_unsafe_metadata_says_that_nothing_was_run(tmp_path: Path) -> None:
    hostile.runner(tmp_path / "a", "system_pickle")
    assert_error(
        tmp_path / "a",
        tmp_path,
        UnsafeMetadata,
        "HERE/a/.metadata asks for os.system, which no checkpoint needs.",
        "It was not imported, and nothing was run. Do not load this file with torch either.",
    )
