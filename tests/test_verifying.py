"""``verify`` says of a model whether it is what the checkpoint gives, and if not, what differs and where first."""

from __future__ import annotations

import json
import math
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from checkpoints import distributed, models, saved
from checkpoints.edit import editing, indices
from reference import cast, full_load, plain
from safetensors.torch import load_file, save_file
from torch import Tensor

import dcptools
from dcptools.errors import Cancelled, ChecksumError, FindingsError, NotAModel, NotVerified, UsageError
from dcptools.hf import read_model
from dcptools.mapping import KeyMapping, Output
from dcptools.shards import ShardPlan
from dcptools.tensors import View
from dcptools.verifying import Verification, complete
from dcptools.verifying.library import Opened

INDEX = "model.safetensors.index.json"


def written(directory: Path, plan: ShardPlan) -> Path:
    dcptools.write(plan, directory, fsync=False)
    return directory


def codes(found: Verification) -> list[tuple[str, str]]:
    return [(finding.code, finding.key) for finding in found.findings]


def foreign(directory: Path, tensors: dict[str, Tensor], **files: Any) -> Path:
    """A model as another program writes it: one file, made by the safetensors library."""
    directory.mkdir(parents=True)
    save_file(
        {name: plain(tensor) for name, tensor in tensors.items()}, directory / "model.safetensors", {"format": "pt"}
    )
    return directory


class TestTheSame:
    @pytest.mark.parametrize("name", [n for n in distributed.CASES if n not in distributed.WITHOUT_METADATA])
    @pytest.mark.parametrize("dtype", ["bfloat16", "keep"])
    def test_torch_is_the_judge_of_both_sides(
        self, dtype: str, name: str, cases: dict[str, Path], tmp_path: Path
    ) -> None:
        """What torch's own reader loads and casts is what dcptools writes, and what verify expects."""
        loaded = full_load(cases[name])
        mapping = dcptools.preview(cases[name], exclude=[key for key in loaded if "complex" in key])
        theirs = {o.name: cast(loaded[o.sources[0].key], dtype) for o in mapping.outputs}
        for directory in (
            foreign(tmp_path / "theirs", theirs),
            written(tmp_path / "ours", dcptools.plan(mapping, "200", dtype)),
        ):
            found = dcptools.verify(directory, mapping)
            assert found.findings == ()
            assert (found.ok, len(found.weights)) == (True, len(theirs))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "keep"])
    @pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_nan_inf_and_subnormals_after_every_cast(self, stored: torch.dtype, dtype: str, tmp_path: Path) -> None:
        state = saved.model_state(special_values=True, dtype=stored) | {
            "model.scalar": torch.tensor(torch.nan).to(stored)
        }
        plan = dcptools.plan(dcptools.preview(saved.trained(tmp_path / "c", state)), "1kB", dtype)
        assert dcptools.verify(written(tmp_path / "m", plan), plan).findings == ()

    @pytest.mark.parametrize(
        ("stored", "written", "same"),
        [
            (torch.float16, torch.float32, True),
            (torch.float64, torch.bfloat16, True),
            (torch.float32, torch.bfloat16, False),
            (torch.float32, torch.float16, False),
            (torch.float16, torch.float16, False),
        ],
    )
    def test_the_bits_of_a_nan_count_but_where_torch_gives_them_by_its_place(
        self, stored: torch.dtype, written: torch.dtype, same: bool, tmp_path: Path
    ) -> None:
        values = torch.tensor([1.0, math.nan, 2.0])
        checkpoint = saved.trained(tmp_path / "c", {"model.w": values.to(stored)}, optimizer=False)
        other = values.to(written)
        other.view(torch.uint8)[other.element_size()] ^= 1  # the lowest bit of the NaN
        assert dcptools.verify(foreign(tmp_path / "m", {"model.w": other}), checkpoint).ok is same
        other[1] = 0.0
        assert not dcptools.verify(foreign(tmp_path / "n", {"model.w": other}), checkpoint).ok

    def test_every_dtype_and_every_stride(self, tmp_path: Path) -> None:
        state = saved.dtype_state() | saved.strided_state() | saved.shape_state()
        checkpoint = dcptools.read(saved.save(tmp_path / "c", state))
        wide = [key for key, tensor in checkpoint.tensors.items() if tensor.dtype.code is None]
        plan = dcptools.plan(dcptools.preview(checkpoint, layout="container", exclude=wide))
        assert dcptools.verify(written(tmp_path / "m", plan), plan).findings == ()

    def test_the_models_own_config_says_what_it_ties(self, tmp_path: Path, expected_in_process: None) -> None:
        """Both copies are in the checkpoint, as DCP stores them, and one in the model, as ``save_pretrained`` does."""
        checkpoint = saved.trained(tmp_path / "c", saved.model_state(tied=True))
        config = json.dumps({**models.QWEN3_CONFIG, "tie_word_embeddings": True})
        assets = models.assets(tmp_path / "assets", config=config)
        model = tmp_path / "m"
        dcptools.convert(checkpoint, model, model_assets_dir=assets, fsync=False)
        found = dcptools.verify(model, checkpoint)
        assert found.findings == () and found.ok
        assert dcptools.verify(str(model / "model.safetensors"), checkpoint).ok
        (model / "config.json").write_text(json.dumps(models.QWEN3_CONFIG))  # ties nothing: the head must be there
        assert codes(dcptools.verify(model, checkpoint)) == [("disk-missing", "lm_head.weight")]

    def test_a_sentence_says_it(self, tmp_path: Path) -> None:
        state = saved.model_state(layers=1) | {"model.step": torch.tensor(3)}
        checkpoint = saved.trained(tmp_path / "c", state)
        said = []
        for number, options in enumerate(
            ({}, {"dtype": "keep"}, {"dtype": "bfloat16", "dtype_for": ["*norm.weight=float32", "model.step=keep"]})
        ):
            model = tmp_path / f"m{number}"
            dcptools.convert(checkpoint, model, fsync=False, **options)  # type: ignore[arg-type]
            said.append(dcptools.verify(model, checkpoint).headline())
        where = f"The 15 weights of {tmp_path}/m{{}} are those of {checkpoint}, {{}}."
        assert said == [
            where.format(0, "14 cast to bfloat16 and 1 uncast"),
            where.format(1, "uncast"),
            where.format(2, "9 cast to bfloat16 and 6 uncast"),
        ]

    def test_a_model_of_save_pretrained(self, tmp_path: Path) -> None:
        import transformers

        config = transformers.Qwen3Config(**{**models.MODELS["qwen3"][2], "tie_word_embeddings": False})
        live = transformers.Qwen3ForCausalLM(config)
        checkpoint = saved.trained(tmp_path / "step-1000", dict(live.state_dict()))
        live.to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="2KB")
        found = dcptools.verify(tmp_path / "model", checkpoint)
        assert (found.ok, found.findings) == (True, ())
        count = len(live.state_dict())
        assert found.headline() == (
            f"The {count} weights of {tmp_path}/model are those of {checkpoint}, cast to bfloat16."
        )

    def test_a_frame_and_json(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        dcptools.convert(checkpoint, tmp_path / "m", fsync=False)
        found = dcptools.verify(tmp_path / "m", checkpoint)
        assert f"<strong>{found.headline()}</strong>" in found._repr_html_()
        frame = found.to_frame()
        assert set(frame["state"]) == {"same"} and set(frame["written"]) == {"bfloat16"}
        assert json.loads(json.dumps(found.to_json()))["ok"] is True
        assert found.nbytes == sum(tensor.nbytes for tensor in full_load_of_model(tmp_path / "m").values())


def full_load_of_model(directory: Path) -> dict[str, Tensor]:
    return {key: tensor for path in directory.glob("*.safetensors") for key, tensor in load_file(path).items()}


class TestViews:
    """Outputs that are several views in any order, as other names need them."""

    WEIGHT, OTHER = torch.randn(16, 30), torch.randn(30, 16)

    def mapping(self, directory: Path) -> KeyMapping:
        state = {"model.w": self.WEIGHT, "model.v": self.OTHER, "model.z": torch.ones(3)}
        mapping = dcptools.preview(saved.trained(directory, state, optimizer=False))
        views = (
            View("model.model.v", (16, 30), (1, 16), 0),
            View("model.model.w", (2, 2, 4, 30), (240, 30, 60, 1), 0),
            View("model.model.w", (8, 30), (60, 1), 30),
        )
        (z,) = [output for output in mapping.outputs if output.name == "model.z"]
        return replace(mapping, outputs=(Output("model.all", views, (40, 30), z.dtype, "fused"), z))

    def expected(self) -> Tensor:
        rotary = self.WEIGHT.reshape(2, 4, 2, 30).transpose(1, 2).reshape(16, 30)
        return torch.cat([self.OTHER.t(), rotary, self.WEIGHT[1::2]])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_they_are_what_torch_makes_of_them(self, dtype: torch.dtype, tmp_path: Path) -> None:
        mapping = self.mapping(tmp_path / "c")
        tensors = {"model.all": self.expected().to(dtype), "model.z": torch.ones(3).to(dtype)}
        assert dcptools.verify(foreign(tmp_path / "m", tensors), mapping).findings == ()
        for row, column in ((0, 29), (15, 0), (21, 3), (39, 29)):
            wrong = tensors["model.all"].clone()
            wrong[row, column] += 1
            model = foreign(tmp_path / f"m{row}", {**tensors, "model.all": wrong})
            (finding,) = dcptools.verify(model, mapping).findings
            assert f"1 of 1,200 values differ, the first at [{row}, {column}]: " in finding.message


class TestDifferent:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        return saved.trained(tmp_path / "step-1000", saved.model_state())

    @pytest.fixture
    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.to(torch.bfloat16) for name, tensor in saved.model_state().items()}

    def test_the_first_weight_and_the_first_element_are_named(
        self, checkpoint: Path, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        key = "model.layers.1.mlp.up_proj.weight"
        expected = tensors[key][3, 5].item()
        tensors[key][3, 5], tensors[key][9, 0] = 0.5, -0.5
        tensors["model.norm.weight"][2] = torch.nan
        found = dcptools.verify(foreign(tmp_path / "m", tensors), checkpoint)
        assert codes(found) == [("disk-values", key), ("disk-values", "model.norm.weight")]
        bits = tensors[key].new_tensor(expected).view(torch.int16).item() & 0xFFFF
        assert found.findings[0].message == (
            f"2 of 128 values differ, the first at [3, 5]: 0.5 (0x3f00) in model.safetensors, "
            f"not {expected:.9g} (0x{bits:04x})"
        )
        assert not found.ok
        assert found.headline() == (f"{tmp_path}/m is not what {checkpoint} gives: of 25 weights, 2 with other values.")
        frame = found.to_frame().set_index("name")
        assert frame["differing"].sum() == 3 and frame.loc[key, "state"] == "values"
        assert f"{key}" in str(found)

    def test_a_difference_far_inside_a_large_tensor(self, tmp_path: Path) -> None:
        large = torch.arange(6_000_000, dtype=torch.float32).reshape(2000, 3000)
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": {"model.w": large}}))
        for row, column in ((0, 0), (1400, 2), (1999, 2999)):
            wrong = large.clone()
            wrong[row, column:] = -1.0
            wrong[1999, 2999] = -1.0
            model = foreign(tmp_path / f"m{row}", {"model.w": wrong})
            (finding,) = dcptools.verify(model, mapping, workers=2).findings
            count = int((wrong != large).sum())
            assert f"{count:,} of 6,000,000 values differ, the first at [{row}, {column}]: -1 (0xbf8" in finding.message

    def test_names_shapes_and_dtypes(self, checkpoint: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        tensors["model.more.weight"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].view(torch.int16)
        found = dcptools.verify(foreign(tmp_path / "m", tensors), checkpoint)
        assert [str(finding).split(" (")[0] for finding in found.findings] == [
            "error[disk-shape] lm_head.weight: it is [15, 8], and [16, 8] is expected",
            "error[disk-dtype] model.layers.0.mlp.up_proj.weight: it is int16, and no conversion makes that of float32",
            "error[disk-unexpected] model.more.weight: it is in model.safetensors but not expected",
            "error[disk-missing] model.norm.weight: float32 [8] is expected, but no readable file has it",
        ]
        assert found.headline().endswith(
            "of 26 weights, 1 of another shape, 1 of another dtype, 1 missing, 1 not expected."
        )

    def test_another_model_altogether(self, checkpoint: Path, tmp_path: Path) -> None:
        found = dcptools.verify(foreign(tmp_path / "m", {"w": torch.ones(3)}), checkpoint)
        assert found.headline().endswith("No name matches: was it converted with the same options?")

    def test_the_dtype_is_compared_if_one_is_asked_for(
        self, checkpoint: Path, tensors: dict[str, Tensor], tmp_path: Path
    ) -> None:
        model = foreign(tmp_path / "m", tensors)
        assert dcptools.verify(model, checkpoint, dtype="bfloat16").ok
        exceptions = ["model.norm.weight=float32"]
        found = dcptools.verify(model, checkpoint, dtype="bfloat16", dtype_for=exceptions)
        assert codes(found) == [("disk-dtype", "model.norm.weight")]
        assert len(codes(dcptools.verify(model, checkpoint, dtype="keep"))) == 25

    def test_the_dtype_that_it_was_converted_with_is_named(self, checkpoint: Path, tmp_path: Path) -> None:
        def hints(model: Path, dtype: str, **options: Any) -> set[str]:
            found = dcptools.verify(model, checkpoint, dtype=dtype, **options)
            return {finding.hint for finding in found.findings if finding.code == "disk-dtype"}

        for number, dtype in enumerate(("keep", "float16", "bfloat16")):
            dcptools.convert(checkpoint, tmp_path / dtype, dtype=dtype, fsync=False)
            asked = ("bfloat16", "keep", "float16")[number]
            said = f"the model's dtypes are those of dtype='{dtype}' alone: give that, or write it again"
            assert hints(tmp_path / dtype, asked) == {said}
        assert hints(tmp_path / "bfloat16", "bfloat16", dtype_for="*norm*=float32") == {said}
        plan = dcptools.plan(checkpoint)
        assert {each.hint for each in dcptools.verify(tmp_path / "float16", plan).findings} > {
            "the model's dtypes are those of dtype='float16' alone: give that, or write it again"
        }
        dcptools.convert(checkpoint, tmp_path / "mixed", dtype_for="*norm*=float32", fsync=False)
        assert hints(tmp_path / "mixed", "keep") == {
            "give the dtypes that were written (dtype=, dtype_for=), or write it again"
        }

    def test_another_step_is_another_model(self, tensors: dict[str, Tensor], tmp_path: Path) -> None:
        later = saved.trained(tmp_path / "step-2000", saved.model_state(seed=1))
        found = dcptools.verify(foreign(tmp_path / "m", tensors), later)
        assert {weight.state for weight in found.weights} == {"values"}

    def test_a_damaged_checkpoint_is_not_blamed_on_the_model(self, checkpoint: Path, tmp_path: Path) -> None:
        dcptools.convert(checkpoint, tmp_path / "m", fsync=False)
        with editing(checkpoint) as metadata:
            (index,) = indices(metadata, "model.model.norm.weight")
            info = metadata.storage_data[index]
        path = checkpoint / info.relative_path
        content = bytearray(path.read_bytes())
        at = content.index(saved.model_state()["model.norm.weight"].numpy().tobytes(), info.offset)
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(ChecksumError, match=r"model\.model\.norm\.weight"):
            dcptools.verify(tmp_path / "m", checkpoint)


@pytest.fixture
def small(tmp_path: Path) -> tuple[ShardPlan, Path]:
    """A model of two files with an index, a config and a tokenizer, as few bytes as that takes."""
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "config.json").write_text(models.UNKNOWN_CONFIG)
    (assets / "tokenizer.json").write_bytes(bytes(range(60)))
    state = {"model": {"model.a": torch.randn(3, 2), "model.bcd": torch.arange(3)}}
    mapping = dcptools.preview(saved.save(tmp_path / "c", state), model_assets_dir=assets)
    plan = dcptools.plan(mapping, 24)
    return plan, written(tmp_path / "m", plan)


FILES = (INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json", "tokenizer.json")


class TestEveryByte:
    """Each byte of each file is made another one, in two ways, and it is found."""

    @pytest.mark.parametrize("name", FILES)
    def test_with_the_plan_it_is_an_error(self, name: str, small: tuple[ShardPlan, Path]) -> None:
        plan, model = small
        assert dcptools.verify(model, plan).findings == ()
        assert [at for at in every_flip(model / name) if dcptools.verify(model, plan, workers=1).ok] == []

    @pytest.mark.parametrize("name", FILES)
    def test_with_the_checkpoint_and_the_assets_it_is_at_least_a_warning(
        self, name: str, small: tuple[ShardPlan, Path]
    ) -> None:
        plan, model = small
        assert dcptools.verify(model, plan.mapping).findings == ()
        missed = [at for at in every_flip(model / name) if not dcptools.verify(model, plan.mapping, workers=1).findings]
        assert missed == []

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b" ", lambda _: b""])
    def test_a_byte_too_few_or_too_many(
        self, change: Callable[[bytes], bytes], name: str, small: tuple[ShardPlan, Path]
    ) -> None:
        plan, model = small
        (model / name).write_bytes(change((model / name).read_bytes()))
        assert not dcptools.verify(model, plan).ok

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_gone(self, name: str, small: tuple[ShardPlan, Path]) -> None:
        plan, model = small
        (model / name).unlink()
        found = dcptools.verify(model, plan)
        assert name in {finding.key for finding in found.errors}


def every_flip(path: Path) -> Any:
    """The file with another byte, for each of its bytes, twice; what it was is put back."""
    content = path.read_bytes()
    for at in range(len(content)):
        for mask in (1 << at % 8, 0x29):  # 0x29 makes a tab of a space, which JSON does not mind
            changed = bytearray(content)
            changed[at] ^= mask
            path.write_bytes(changed)
            yield at
    path.write_bytes(content)


class TestFiles:
    def test_files_that_are_no_part_of_the_model(self, small: tuple[ShardPlan, Path]) -> None:
        plan, model = small
        save_file({"x": torch.ones(1)}, model / "model-00003-of-00003.safetensors")
        found = dcptools.verify(model, plan)
        assert (found.ok, codes(found)) == (True, [("model-extra", "model-00003-of-00003.safetensors")])

    def test_an_index_beside_a_single_file(self, tmp_path: Path) -> None:
        plan = dcptools.plan(dcptools.preview(saved.trained(tmp_path / "c")))
        model = written(tmp_path / "m", plan)
        (model / INDEX).write_text("{}")
        assert codes(dcptools.verify(model, plan)) == [("model-index", INDEX), ("model-extra", INDEX)]

    def test_no_index_of_several_files(self, small: tuple[ShardPlan, Path]) -> None:
        plan, model = small
        (model / INDEX).unlink()
        (finding,) = dcptools.verify(model, plan.mapping).findings
        assert (finding.code, finding.key, finding.severity) == ("model-index", INDEX, "error")

    def test_another_program_may_copy_the_config_as_it_is(self, small: tuple[ShardPlan, Path]) -> None:
        plan, model = small
        (model / "config.json").write_text(models.UNKNOWN_CONFIG)
        assert dcptools.verify(model, plan.mapping).findings == ()
        assert codes(dcptools.verify(model, plan)) == [("model-asset", "config.json")]

    def test_a_config_that_names_another_dtype(self, tmp_path: Path) -> None:
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in saved.model_state().items()}
        checkpoint = saved.trained(tmp_path / "c")
        for name, content, expected in (
            ("right", '{"torch_dtype": "bfloat16"}', []),
            ("wrong", '{"dtype": "float16"}', ["it says float16, but most of the weights are bfloat16"]),
            ("none", "{}", []),
            ("broken", "{", ["it is not a JSON object in UTF-8"]),
        ):
            model = foreign(tmp_path / name, tensors)
            (model / "config.json").write_text(content)
            assert [f.message for f in dcptools.verify(model, checkpoint).findings] == expected

    def test_a_field_of_the_config_that_differs_is_named(self, small: tuple[ShardPlan, Path]) -> None:
        plan, model = small
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        (finding,) = dcptools.verify(model, plan).findings
        assert (finding.code, finding.message) == ("model-asset", "its model_type differ from the assets'")

    @pytest.mark.parametrize("name", ["\\ud800", "\\u001b[31m", "\\u0000", "x" * 100_000])
    def test_names_that_are_no_names(self, name: str, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c", {"model.w": torch.ones(2)}, optimizer=False)
        header = f'{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}'.encode()
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
        found = dcptools.verify(tmp_path / "m", checkpoint)
        refused = len(name) > 4096 or name == "\\ud800"  # longer than any name, or half a character
        expected = {"disk-missing", "model-file" if refused else "disk-unexpected"}
        assert expected <= {finding.code for finding in found.findings}
        assert str(found).replace("\n", "").isprintable()
        assert json.loads(json.dumps(found.to_json()))["ok"] is False

    def test_a_header_for_another_framework(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c", {"model.w": torch.ones(2)}, optimizer=False)
        (tmp_path / "m").mkdir()
        save_file({"model.w": torch.ones(2)}, tmp_path / "m" / "model.safetensors")
        (finding,) = dcptools.verify(tmp_path / "m", checkpoint).findings
        assert finding.message == "its header does not say the format, but transformers expects pt"


def test_a_file_is_mapped_anew_after_some_bytes_so_that_memory_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: torch.full((1000,), float(n)) for n, name in enumerate("abcdef")}
    model = read_model(foreign(tmp_path / "m", tensors))
    mapped: list[Any] = []
    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda *a, **k: mapped.append(a) or safe_open(*a, **k))
    opened = Opened(model, "model.safetensors", mapped_bytes=8000)
    values = {name: opened.values(model.weights[name], 1000) for name in tensors}
    assert len(mapped) == 3  # two tensors each
    assert {name: set(bits.view("f4").tolist()) for name, bits in values.items()} == {
        name: {float(n)} for n, name in enumerate("abcdef")
    }  # those of the first mapping, too


class TestUsage:
    def test_an_exception_of_the_dtype_that_matches_nothing_is_the_warning_that_convert_has(
        self, tmp_path: Path
    ) -> None:
        options: Any = {"dtype": "bfloat16", "dtype_for": ["nothing=keep"]}
        checkpoint = saved.trained(tmp_path / "c")
        report = dcptools.convert(checkpoint, tmp_path / "m", **options, fsync=False)
        found = dcptools.verify(tmp_path / "m", checkpoint, **options)
        (warning,) = found.warnings
        assert found.ok and warning in report.warnings
        assert str(warning) == "warning[pattern-unused]: 'nothing' of dtype_for= matched no name"

    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        plan = dcptools.plan(dcptools.preview(checkpoint))
        model = written(tmp_path / "m", plan)
        with pytest.raises(UsageError, match="Names and dtypes are in the plan"):
            dcptools.verify(model, plan, dtype="keep")
        with pytest.raises(UsageError, match="Names are in the mapping"):
            dcptools.verify(model, plan.mapping, root="ema")
        with pytest.raises(UsageError, match="dtype_for= was given without dtype="):
            dcptools.verify(model, checkpoint, dtype_for=["a=keep"])
        with pytest.raises(UsageError, match="0 workers"):
            dcptools.verify(model, checkpoint, workers=0)
        with pytest.raises(NotAModel):
            dcptools.verify(tmp_path / "nothing", checkpoint)
        with pytest.raises(FindingsError, match="No model weights found"):
            dcptools.verify(model, checkpoint, include=["nothing"])

    def test_it_can_be_cancelled_and_tells_how_far_it_is(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        dcptools.convert(checkpoint, tmp_path / "m", fsync=False)
        cancel, seen = threading.Event(), list[tuple[int, int]]()
        dcptools.verify(tmp_path / "m", checkpoint, progress=lambda done, total, _: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        cancel.set()
        with pytest.raises(Cancelled):
            dcptools.verify(tmp_path / "m", checkpoint, cancel=cancel)

    def test_options_reach_the_preview(self, tmp_path: Path) -> None:
        state = saved.model_state(layers=1)
        checkpoint = saved.save(tmp_path / "c", {"ema": state})
        dcptools.convert(checkpoint, tmp_path / "m", root="ema", rename=["lm_head.(.*)=head.\\1"], fsync=False)
        rename = ["lm_head.(.*)=head.\\1"]
        assert dcptools.verify(tmp_path / "m", checkpoint, root="ema", rename=rename).ok
        assert not dcptools.verify(tmp_path / "m", checkpoint, root="ema").ok


class TestConvert:
    def test_a_conversion_is_verified_if_that_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        assert dcptools.convert(checkpoint, tmp_path / "good", verify=True, fsync=False).tensors == 25

        def lose_a_bit(plan: ShardPlan, save_dir: Path, **options: Any) -> Any:
            report = write(plan, save_dir, **options)
            path = Path(save_dir) / "model.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
            return report

        write = complete.write
        monkeypatch.setattr(complete, "write", lose_a_bit)
        with pytest.raises(NotVerified, match="1 with other values") as caught:
            dcptools.convert(checkpoint, tmp_path / "bad", verify=True, fsync=False)
        assert [finding.code for finding in caught.value.findings] == ["disk-values"]
        assert "Do not use it." in str(caught.value)

    def test_a_copy_is_as_good(self, small: tuple[ShardPlan, Path], tmp_path: Path) -> None:
        plan, model = small
        shutil.copytree(model, tmp_path / "copy")
        assert dcptools.verify(tmp_path / "copy", plan).ok


class TestReport:
    """A copy is compared with the file that the conversion left; the checkpoint is gone."""

    @pytest.fixture
    def copied(self, small: tuple[ShardPlan, Path], tmp_path: Path) -> tuple[Path, Path]:
        plan, _ = small
        options = {**plan.mapping.options.arguments(), **plan.options.arguments()}
        checkpoint, report = plan.checkpoint.path, tmp_path / "report.json"
        dcptools.convert(checkpoint, tmp_path / "other", report=report, fsync=False, **options)
        shutil.rmtree(checkpoint)
        return (tmp_path / "other").rename(tmp_path / "copy"), report

    @pytest.mark.parametrize("name", FILES)
    def test_every_byte_of_every_file_is_found(self, name: str, copied: tuple[Path, Path]) -> None:
        model, report = copied
        assert dcptools.verify(model, report=report).findings == ()
        assert [at for at in every_flip(model / name) if dcptools.verify(model, report=report, workers=1).ok] == []

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_gone_or_cut_is_named(self, name: str, copied: tuple[Path, Path]) -> None:
        model, report = copied
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[:-1])
        assert name in {finding.key for finding in dcptools.verify(model, report=report).errors}
        (model / name).unlink()
        assert name in {finding.key for finding in dcptools.verify(model, report=report).errors}

    def test_it_says_what_was_done(self, tmp_path: Path) -> None:
        state = saved.model_state(layers=1) | {"model.big": torch.full((1 << 20,), 1e6)}
        checkpoint = saved.trained(tmp_path / "c", state)
        dcptools.convert(
            checkpoint, tmp_path / "m", dtype="float16", dtype_for=["lm_head*=keep"], rename=["a=b"],
            report=tmp_path / "r.json", verify=True, fsync=False,
        )  # fmt: skip
        said = json.loads((tmp_path / "r.json").read_text())
        assert said["checkpoint"]["path"] == str(checkpoint)
        assert said["fingerprint"] == said["plan"]["fingerprint"] and said["verified"] is True
        assert said["versions"]["torch"] == torch.__version__ and "python" in said["versions"]
        assert said["options"]["rename"] == [{"pattern": "a", "replacement": "b"}]
        assert said["options"]["dtype_for"] == [["lm_head*", "keep"]]
        assert {"rename-unused", "cast-overflow"} <= {finding["code"] for finding in said["findings"]}
        assert len(said["mapping"]["outputs"]) == len(said["weights"]) == 15
        crc = {weight["name"]: weight["crc32"] for weight in said["weights"]}
        assert crc == {
            name: f"{zlib.crc32(plain(tensor).reshape(-1).view(torch.uint8).numpy()):08x}"
            for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items()
        }

    def test_both_a_checkpoint_and_a_report(self, small: tuple[ShardPlan, Path], tmp_path: Path) -> None:
        plan, _ = small
        checkpoint = plan.checkpoint.path
        dcptools.convert(checkpoint, tmp_path / "n", report=tmp_path / "r.json", fsync=False)
        found = dcptools.verify(tmp_path / "n", checkpoint, report=tmp_path / "r.json")
        assert found.headline().startswith(
            f"The 2 weights of {tmp_path}/n are those of {checkpoint} and {tmp_path}/r.json, 1 cast to bfloat16"
        )
        dcptools.convert(checkpoint, tmp_path / "n", dtype="float16", overwrite=True, fsync=False)
        found = dcptools.verify(tmp_path / "n", checkpoint, report=tmp_path / "r.json")
        assert [weight.state for weight in found.weights] == ["dtype", "same"]

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": "dcptools-report", "version": 2}',
         b'{"format": "dcptools-report", "version": 1, "files": 3, "weights": []}',
         b'{"format": "dcptools-report", "version": 1, "files": [{"name": "../x", "nbytes": 1, "sha256": "", '
         b'"weights": false}], "weights": []}'],
    )  # fmt: skip
    def test_what_is_no_report(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "r.json").write_bytes(content)
        model = foreign(tmp_path / "m", {"w": torch.ones(1)})
        with pytest.raises(UsageError, match=r"r\.json is not a report of dcptools"):
            dcptools.verify(model, report=tmp_path / "r.json")
        with pytest.raises(UsageError, match="cannot be read"):
            dcptools.verify(model, report=tmp_path / "nothing.json")
        with pytest.raises(UsageError, match="There is nothing to compare the model with"):
            dcptools.verify(model)

    def test_it_is_written_whole_or_not_at_all(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        for report in (tmp_path, tmp_path / "nothing" / "r.json"):
            with pytest.raises(UsageError, match="Give the name of a file in an existing directory"):
                dcptools.convert(checkpoint, tmp_path / "m", report=report, fsync=False)
        assert not (tmp_path / "m").exists()
        dcptools.convert(checkpoint, tmp_path / "m", report=tmp_path / "m.json", fsync=False)
        assert {path.name for path in tmp_path.iterdir()} == {"c", "m", "m.json"}
