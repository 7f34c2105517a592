"""``diff`` says what two checkpoints or models have in common, and how far apart they are, as torch computes it."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import broken, distributed, models, saved
from reference import full_load, plain
from safetensors.torch import save_file
from torch import Tensor

import dcptools
from dcptools.comparing import Comparison, measures
from dcptools.errors import BrokenCheckpoint, Cancelled, DcptoolsError, FindingsError, NotACheckpoint, UsageError


def model(directory: Path, tensors: dict[str, Tensor]) -> Path:
    directory.mkdir()
    save_file({name: plain(tensor) for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def states(found: Comparison) -> dict[str, str]:
    return {tensor.name: tensor.state for tensor in found.tensors}


def row(found: Comparison, name: str) -> Any:
    return found.to_frame().set_index("name").loc[name]


class TestEqual:
    @pytest.mark.parametrize("name", [n for n in distributed.CASES if n not in distributed.WITHOUT_METADATA])
    def test_however_it_is_cut(self, name: str, cases: dict[str, Path], tmp_path: Path) -> None:
        """The same tensors, saved by four processes and by one."""
        whole = saved.save(tmp_path / "whole", full_load(cases[name]))
        found = dcptools.diff(cases[name], whole)
        assert (found.same, found.by) == (True, "keys")
        assert set(states(found)) == set(dcptools.read(whole).tensors)
        assert set(found.to_frame()["equal"]) == {1.0}

    def test_every_dtype_and_what_is_not_finite(self, tmp_path: Path) -> None:
        state = saved.dtype_state() | {"special": saved.special_floats(), "none": torch.empty(0, 3)}
        one, other = saved.save(tmp_path / "a", state), saved.save(tmp_path / "b", state)
        found = dcptools.diff(one, other)
        assert found.headline() == f"A and B are equal: {len(state)} tensors, bit for bit."
        for key, tensor in state.items():
            changed = {**state, key: tensor.clone()}
            if not tensor.numel():
                continue
            changed[key].view(torch.uint8).reshape(-1)[0] ^= 1
            found = dcptools.diff(one, saved.save(tmp_path / key, changed))
            assert [name for name, said in states(found).items() if said != "equal"] == [key]
            assert row(found, key)["equal"] == 1 - 1 / tensor.numel()

    def test_an_export_is_its_checkpoint_after_the_cast(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c", saved.model_state(special_values=True))
        dcptools.convert(checkpoint, tmp_path / "m", shard_size=500, fsync=False)
        found = dcptools.diff(checkpoint, tmp_path / "m", cast=True)
        assert (found.same, found.by, len(found.tensors)) == (True, "names", 25)
        found = dcptools.diff(checkpoint, tmp_path / "m")
        assert set(states(found).values()) == {"dtype"}
        assert found.headline().endswith("To compare after a cast: cast=True.")
        assert (found.to_frame()["max_rel"].dropna() < 2**-8).sum() == 24  # all but the one with special values

    def test_two_models(self, tmp_path: Path) -> None:
        state = saved.model_state()
        one, other = model(tmp_path / "a", state), model(tmp_path / "b", state)
        assert dcptools.diff(one, other).same
        assert dcptools.diff(one, other / "model.safetensors").same


class TestDifferent:
    def test_what_is_only_in_one_and_other_shapes(self, tmp_path: Path) -> None:
        one = saved.save(tmp_path / "a", {"x": torch.ones(2, 3), "y": torch.ones(2), "z": torch.ones(4)})
        other = saved.save(tmp_path / "b", {"x": torch.ones(3, 2), "y": torch.ones(2), "w": torch.ones(1).half()})
        found = dcptools.diff(one, other)
        assert states(found) == {"w": "only b", "x": "shape", "y": "equal", "z": "only a"}
        assert found.headline() == (
            "A and B differ: of 4 tensors, 1 equal, 1 of another shape, 1 only in A, 1 only in B."
        )
        assert row(found, "x")[["shape_a", "shape_b"]].tolist() == [(2, 3), (3, 2)]
        assert row(found, "w")[["dtype_a", "dtype_b"]].tolist() == ["", "float16"]
        assert math.isnan(row(found, "x")["equal"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("numel", [10, 2_500_000])
    def test_the_numbers_are_those_of_torch(self, numel: int, dtype: torch.dtype, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(numel, generator=generator).to(dtype)
        b = torch.where(torch.rand(numel, generator=generator) < 0.3, a, a * 1.01 + 0.001).to(dtype)
        found = dcptools.diff(saved.save(tmp_path / "a", {"w": a}), saved.save(tmp_path / "b", {"w": b}), workers=2)
        x, y = a.double(), b.double()
        expected = {
            "equal": (a == b).double().mean().item(),
            "max_abs": (x - y).abs().max().item(),
            "max_rel": ((x - y).abs() / torch.maximum(x.abs(), y.abs())).nan_to_num().max().item(),
            "norm": torch.linalg.vector_norm(x - y).item(),
            "relative": (torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(x)).item(),
            "cosine": torch.nn.functional.cosine_similarity(x, y, dim=0).item(),
        }
        assert row(found, "w")[list(expected)].astype(float).to_dict() == pytest.approx(expected, rel=1e-9)

    def test_other_kinds_of_numbers(self, tmp_path: Path) -> None:
        pairs = {
            "int": (torch.tensor([1, 2, 3]), torch.tensor([1, 2, 5])),
            "bool": (torch.tensor([True, False]), torch.tensor([True, True])),
            "complex": (torch.tensor([3 + 4j, 1j]), torch.tensor([3 + 4j, 2j])),
            "wide": (torch.tensor([1 + 0j, 1j]).to(torch.complex128), torch.tensor([0j, 1j]).to(torch.complex128)),
            "fp8": (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), torch.tensor([1.0, 4.0]).to(torch.float8_e4m3fn)),
            "zero": (torch.tensor([0.0, 0.0]), torch.tensor([-0.0, 0.0])),
        }
        one = saved.save(tmp_path / "a", {key: a for key, (a, _) in pairs.items()})
        found = dcptools.diff(one, saved.save(tmp_path / "b", {key: b for key, (_, b) in pairs.items()}))
        frame = found.to_frame().set_index("name")
        assert frame["equal"].to_dict() == pytest.approx({**dict.fromkeys(pairs, 0.5), "int": 2 / 3})
        assert frame["max_abs"].to_dict() == {"int": 2, "bool": 1, "complex": 1, "wide": 1, "fp8": 2, "zero": 0}
        assert frame.loc["complex", "cosine"] == pytest.approx((25 + 2) / math.sqrt(26 * 29))
        assert math.isnan(frame.loc["zero", "cosine"])

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        nan, inf = math.nan, math.inf
        a = {"same": torch.tensor([nan, inf, 1.0]), "nan": torch.tensor([nan, 1.0]), "inf": torch.tensor([inf, 2.0])}
        b = {"same": torch.tensor([nan, inf, 2.0]), "nan": torch.tensor([0.0, 1.0]), "inf": torch.tensor([-inf, 2.0])}
        found = dcptools.diff(saved.save(tmp_path / "a", a), saved.save(tmp_path / "b", b)).to_frame().set_index("name")
        assert found["max_abs"].to_dict() == {"same": 1.0, "nan": inf, "inf": inf}
        assert found["norm"].to_dict() == {"same": 1.0, "nan": 0.0, "inf": 0.0}
        assert found["equal"].to_dict() == pytest.approx({"same": 2 / 3, "nan": 0.5, "inf": 0.5})

    @pytest.mark.parametrize("at_once", [7, 64, 1 << 15])
    def test_the_numbers_do_not_depend_on_how_many_values_are_looked_at_together(
        self, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measures, "AT_ONCE", at_once)
        one = torch.arange(-150.0, 150.0)
        one[[3, 20, 200]] = torch.tensor([math.nan, math.inf, -math.inf])
        other = one.clone()
        other[100] += 0.5
        other[299] += 4
        found = dcptools.diff(
            model(tmp_path / "a", {"w": one, "same": one}), model(tmp_path / "b", {"w": other, "same": one})
        )
        a, b = (torch.where(torch.isfinite(x), x, 0.0).double() for x in (one, other))
        assert states(found) == {"w": "values", "same": "equal"}
        assert row(found, "w")["equal"] == 298 / 300
        assert (row(found, "w")["max_abs"], row(found, "w")["max_rel"]) == (4.0, 4 / 153)
        assert row(found, "w")["norm"] == pytest.approx(float((a - b).norm()), rel=1e-12)
        assert row(found, "w")["cosine"] == pytest.approx(float(a.dot(b) / a.norm() / b.norm()), rel=1e-12)
        assert (row(found, "same")["norm"], row(found, "same")["cosine"]) == (0.0, 1.0)

    def test_values_of_another_dtype_are_compared_as_numbers(self, tmp_path: Path) -> None:
        one = saved.save(tmp_path / "a", {"w": torch.tensor([1.0, 2.5, 3.0001]), "n": torch.tensor([1, 2])})
        other = saved.save(
            tmp_path / "b", {"w": torch.tensor([1.0, 2.5, 3.0001]).half(), "n": torch.tensor([1.0, 2.0])}
        )
        found = dcptools.diff(one, other)
        assert row(found, "w")["equal"] == pytest.approx(2 / 3)
        assert (row(found, "n")["state"], row(found, "n")["equal"]) == ("dtype", 1.0)
        assert states(dcptools.diff(one, other, cast=True)) == {"n": "dtype", "w": "equal"}

    def test_what_training_changed(self, tmp_path: Path) -> None:
        state = saved.model_state()
        later = {key: value.clone() for key, value in state.items()}
        later["model.layers.1.mlp.up_proj.weight"] *= 1.5
        later["model.norm.weight"][0] += 0.01
        found = dcptools.diff(
            saved.trained(tmp_path / "a", state), saved.trained(tmp_path / "b", later), keys="model.*"
        )
        worst = found.worst_first()
        assert [tensor.name for tensor in worst] == [
            "model.model.layers.1.mlp.up_proj.weight",
            "model.model.norm.weight",
        ]
        assert (worst[0].relative, worst[0].cosine) == pytest.approx((0.5, 1.0))
        text = str(found)
        assert "model.model.layers.1.mlp.up_proj.weight  other values" in text and "87.5%" in text
        assert "The largest relative difference, 0.5, is that of model.model.layers.1.mlp.up_proj.weight." in text


class TestNames:
    def test_the_options_of_a_mapping_find_the_model(self, tmp_path: Path) -> None:
        state = saved.model_state(layers=1)
        checkpoint = saved.save(tmp_path / "c", {"ema": state, "model": saved.model_state(layers=1, seed=1)})
        exported = model(tmp_path / "m", state)
        assert dcptools.diff(exported, checkpoint, root="ema").same
        assert dcptools.diff(dcptools.preview(checkpoint, root="ema"), exported).same
        assert not dcptools.diff(exported, checkpoint).same
        both = dcptools.diff(dcptools.preview(checkpoint, root="ema"), dcptools.preview(checkpoint))
        assert set(states(both).values()) == {"values"}

    def test_the_models_own_config_says_what_it_ties(self, tmp_path: Path, expected_in_process: None) -> None:
        """Both copies are in the checkpoint, as DCP stores them, and one in the model, as ``save_pretrained`` does."""
        checkpoint = saved.trained(tmp_path / "c", saved.model_state(tied=True))
        config = json.dumps({**models.QWEN3_CONFIG, "tie_word_embeddings": True})
        assets = models.assets(tmp_path / "assets", config=config)
        exported = tmp_path / "m"
        dcptools.convert(checkpoint, exported, model_assets_dir=assets, dtype="keep", fsync=False)
        assert dcptools.diff(checkpoint, exported).same and dcptools.diff(exported, checkpoint).same
        assert dcptools.diff(checkpoint, exported, tied="drop").same  # other options may be given
        (exported / "config.json").write_text(json.dumps(models.QWEN3_CONFIG))  # ties nothing
        assert states(dcptools.diff(checkpoint, exported))["lm_head.weight"] == "only a"
        assert dcptools.diff(checkpoint, exported, model_assets_dir=assets).same

    def test_two_checkpoints_by_names(self, tmp_path: Path) -> None:
        state = saved.model_state(layers=1)
        one, other = saved.trained(tmp_path / "a", state), saved.bare(tmp_path / "b", state)
        assert not dcptools.diff(one, other).same
        found = dcptools.diff(one, other, by="names")
        assert found.same and set(states(found)) == set(state)

    def test_globs_choose_tensors(self, tmp_path: Path) -> None:
        one = saved.trained(tmp_path / "a")
        found = dcptools.diff(one, one, keys=["*norm.weight", "model.lm_head*"])
        assert {name.split(".")[-2] for name in states(found)} == {
            *("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm", "lm_head"),
        }


class TestUsage:
    def test_what_cannot_be_compared(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        exported = model(tmp_path / "m", saved.model_state())
        for options, expected in (
            ({"by": "keys"}, "A model has names but no keys"),
            ({"by": "shapes"}, "Cannot compare by 'shapes'"),
            ({"keys": "nothing*"}, "No tensor matches 'nothing\\*'"),
            ({"workers": 0}, "0 workers"),
        ):
            with pytest.raises(UsageError, match=expected):
                dcptools.diff(checkpoint, exported, **options)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="root= cannot be used here: no checkpoint is compared by names"):
            dcptools.diff(checkpoint, checkpoint, root="ema")
        with pytest.raises(UsageError, match="root= cannot be used here: neither side is a checkpoint") as caught:
            dcptools.diff(exported, exported, root="ema")
        assert "by" not in str(caught.value)  # models are compared by names anyway
        with pytest.raises(NotACheckpoint, match="Or give the directory of a HuggingFace model"):
            dcptools.diff(checkpoint, tmp_path / "nothing")
        (exported / "model.safetensors").write_bytes(b"")
        with pytest.raises(FindingsError, match=r"m cannot be read as a whole"):
            dcptools.diff(checkpoint, exported)

    def test_a_hole_is_an_error_and_not_a_difference(self, tmp_path: Path) -> None:
        directory = broken.hole(tmp_path / "c")
        with pytest.raises(BrokenCheckpoint):
            dcptools.diff(directory, directory)

    def test_it_can_be_cancelled_and_tells_how_far_it_is(self, tmp_path: Path) -> None:
        one = saved.trained(tmp_path / "a")
        seen = list[tuple[int, int]]()
        dcptools.diff(one, one, progress=lambda done, total, _: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] == 2 * dcptools.read(one).nbytes
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            dcptools.diff(one, one, cancel=cancel)

    def test_json_has_no_nan(self, tmp_path: Path) -> None:
        one = saved.save(tmp_path / "a", {"w": torch.tensor([1.0, math.nan]), "x": torch.ones(1)})
        other = saved.save(tmp_path / "b", {"w": torch.tensor([1.0, 2.0])})
        said = json.loads(json.dumps(dcptools.diff(one, other).to_json(), allow_nan=False))
        assert (said["same"], [tensor["state"] for tensor in said["tensors"]]) == (False, ["values", "only a"])
        assert said["tensors"][0]["max_abs"] is None

    def test_errors_are_those_of_dcptools(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for path in (tmp_path / "file", tmp_path, ""):
            with pytest.raises(DcptoolsError):
                dcptools.diff(path, path)

    def test_numpy_says_nothing(self, tmp_path: Path) -> None:
        with np.errstate(all="raise"):
            one = saved.save(tmp_path / "a", {"w": torch.tensor([0.0, 1.0])})
            assert not dcptools.diff(one, saved.save(tmp_path / "b", {"w": torch.tensor([0.0, 0.0])})).same
