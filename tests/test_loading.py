"""Values in memory are those that ``write`` would write, and nothing is loaded that does not fit."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import broken, saved
from reference import assert_same
from safetensors.torch import load_file
from torch import Tensor

import dcptools
from dcptools.demo import Demo
from dcptools.errors import (
    BrokenCheckpoint,
    Cancelled,
    ChecksumError,
    FindingsError,
    NotEnoughMemory,
    UsageError,
)
from dcptools.loading import available_bytes, continuation, load_reference, loss, memory, memory_needed, open_tokenizer

NORMS = "model.layers.*norm.weight"


def written(checkpoint: Path, target: Path, **options: Any) -> dict[str, Tensor]:
    """What is in the files that a conversion writes."""
    dcptools.convert(checkpoint, target, fsync=False, **options)
    return {name: t for file in target.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 kB left."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)


class TestStateDict:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "keep"])
    def test_the_values_are_those_that_are_written(self, dtype: str, demo: Demo, tmp_path: Path) -> None:
        options: dict[str, Any] = {"dtype": dtype, "dtype_for": ["*.norm.weight=float32"]}
        state = dcptools.load_state_dict(demo.checkpoint, **options)
        assert_same(dict(state), written(demo.checkpoint, tmp_path / "out", **options))

    @pytest.mark.parametrize("kind", ["dtypes", "shapes", "strides"])
    def test_any_dtype_shape_and_stride(self, kind: str, tmp_path: Path) -> None:
        if kind == "strides":
            checkpoint = saved.strided(tmp_path / "c")
        else:
            state = saved.dtype_state() if kind == "dtypes" else saved.shape_state()
            checkpoint = saved.save(tmp_path / "c", state)
        options: dict[str, Any] = {"dtype": "keep"}
        mapping = dcptools.preview(checkpoint, exclude=["*complex32", "*complex128"])
        dcptools.write(dcptools.plan(mapping, **options), tmp_path / "out", fsync=False)
        assert_same(dict(dcptools.load_state_dict(mapping, **options)), load_file(tmp_path / "out/model.safetensors"))

    def test_it_reads_only_what_is_asked_for(self, demo: Demo) -> None:
        seen: list[tuple[int, int]] = []
        state = dcptools.load_state_dict(
            demo.checkpoint, NORMS, progress=lambda done, total, _: seen.append((done, total))
        )
        assert len(state) > 2
        assert all(name.endswith("norm.weight") for name in state)
        assert seen[-1] == (sum(t.nbytes for t in state.values()),) * 2
        with pytest.raises(UsageError, match=r"No name matches 'model\.x\*'"):
            dcptools.load_state_dict(demo.checkpoint, "model.x*")

    def test_a_lazy_one_reads_a_tensor_when_it_is_asked_for_it(self, tmp_path: Path) -> None:
        _, key = broken.flipped_bit(tmp_path)
        state = dcptools.load_state_dict(tmp_path, lazy=True)
        assert key.removeprefix("model.") in state and "x" not in state and len(state) == len(list(state)) == 2
        assert repr(state) == f"<2 tensors of {tmp_path}, 56 B, read when used>"
        assert [name for name in state if not _reads(state, name)] == [key.removeprefix("model.")]
        with pytest.raises(ChecksumError):
            dcptools.load_state_dict(tmp_path)

    def test_it_says_both_numbers_if_it_does_not_fit(self, demo: Demo, tight: None) -> None:
        with pytest.raises(NotEnoughMemory, match=r"takes 1\.\d\d MB of memory, but 100 kB is free here") as caught:
            dcptools.load_state_dict(demo.checkpoint)
        assert caught.value.available == 100_000 < caught.value.needed
        assert dcptools.load_state_dict(demo.checkpoint, NORMS)
        assert len(dcptools.load_state_dict(demo.checkpoint, lazy=True)) == 47

    def test_what_changed_since_it_was_read_is_refused(self, tmp_path: Path) -> None:
        checkpoint = saved.trained(tmp_path / "c")
        mapping = dcptools.preview(checkpoint)
        saved.trained(checkpoint)
        with pytest.raises(BrokenCheckpoint, match="changed since it was read"):
            dcptools.load_state_dict(mapping)

    def test_errors_of_the_mapping_stop_it(self, tmp_path: Path) -> None:
        with pytest.raises(FindingsError):
            dcptools.load_state_dict(saved.colliding(tmp_path / "c"))

    def test_it_can_be_cancelled(self, demo: Demo) -> None:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            dcptools.load_state_dict(demo.checkpoint, cancel=cancel)


def _reads(state: Any, name: str) -> bool:
    try:
        return isinstance(state[name], Tensor)
    except ChecksumError:
        return False


class TestModel:
    @pytest.fixture(autouse=True)
    def in_process(self, expected_in_process: None) -> None:
        """transformers is asked here, and not in processes of seconds."""

    def test_a_part_of_it_takes_only_its_own_memory(self, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        mapping = dcptools.preview(demo.checkpoint, model_assets_dir=demo.assets)
        whole = dcptools.load_model(mapping)
        keys = ["model.embed_tokens.*", "model.layers.0.*"]
        part_bytes = sum(t.nbytes for t in dcptools.load_state_dict(mapping, keys).values())
        monkeypatch.setattr(memory, "available_bytes", lambda: part_bytes)
        part = dcptools.load_model(mapping, keys=keys)
        with pytest.raises(NotEnoughMemory):
            dcptools.load_model(mapping)
        for (name, found), wanted in zip(part.named_parameters(), whole.parameters(), strict=True):
            asked = name.startswith(("model.embed_tokens.", "model.layers.0."))
            assert (found.device.type, found.shape, found.dtype) == (
                "cpu" if asked else "meta", wanted.shape, wanted.dtype
            )  # fmt: skip
            assert not asked or torch.equal(found, wanted)
        ids = torch.arange(4).reshape(1, 4)
        with torch.no_grad():
            hidden = [m.model(ids, output_hidden_states=True).hidden_states[1] for m in (whole,)]
            embedded = part.model.embed_tokens(ids)
            positions = part.model.rotary_emb(embedded, ids)
            found = part.model.layers[0](embedded, position_embeddings=positions)
        assert torch.equal(found[0] if isinstance(found, tuple) else found, hidden[0])

    def test_it_goes_to_the_device(self, demo: Demo) -> None:
        model = dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets, device="meta")
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
        with pytest.raises(UsageError, match="'gpu7' is not a device"):
            dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets, device="gpu7")

    def test_a_device_that_is_not_there(self, demo: Demo) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is one")
        with pytest.raises(UsageError, match=r"The device 'cuda' cannot be used: "):
            dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets, device="cuda")

    def test_its_generation_config_goes_with_it(self, demo: Demo) -> None:
        said = json.loads((demo.assets / "generation_config.json").read_text())
        model = dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets)
        assert model.generation_config.eos_token_id == said["eos_token_id"]

    def test_it_says_what_is_missing(self, demo: Demo, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"No config\.json names a model"):
            dcptools.load_model(demo.checkpoint)
        mapping = dcptools.preview(demo.checkpoint)
        with pytest.raises(UsageError, match="The mapping has assets of its own"):
            dcptools.load_model(mapping, model_assets_dir=demo.assets)
        (tmp_path / "config.json").write_text('{"architectures": ["FutureForCausalLM"], "model_type": "future"}')
        with pytest.raises(UsageError, match=r"cannot be made: transformers .* does not know the model_type 'future'"):
            dcptools.load_model(demo.checkpoint, model_assets_dir=tmp_path)

    @pytest.mark.parametrize("options", [{"exclude": "*lm_head*"}, {"rename": "lm_head.(.*)=head.\\1"}])
    def test_no_weight_is_made_up(self, options: Any, demo: Demo) -> None:
        mapping = dcptools.preview(demo.checkpoint, model_assets_dir=demo.assets, **options)
        with pytest.raises(UsageError, match=r"1 weight of the model would be random, .*: lm_head\.weight\."):
            dcptools.load_model(mapping)

    def test_an_adapter_is_no_model(self, tmp_path: Path, demo: Demo) -> None:
        state = {f"base_model.model.model.q.lora_{ab}.default.weight": torch.ones(2, 2) for ab in "AB"}
        checkpoint = saved.save(tmp_path / "c", {"model": {**state, "base_model.model.model.q.weight": torch.ones(2)}})
        mapping = dcptools.preview(checkpoint)
        assert mapping.kind == "adapter"
        with pytest.raises(UsageError, match="This is an adapter, not a model"):
            dcptools.load_model(mapping)

    def test_nothing_is_written(self, demo: Demo) -> None:
        before = {path: path.stat().st_mtime_ns for path in demo.directory.rglob("*")}
        dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets)
        assert {path: path.stat().st_mtime_ns for path in demo.directory.rglob("*")} == before


@pytest.fixture(scope="module")
def model(demo: Demo) -> Any:
    return dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets, dtype="keep")


@pytest.fixture(scope="module")
def tokenizer(demo: Demo) -> Any:
    return open_tokenizer(demo.assets)


class TestTrying:
    def test_it_says_what_the_written_model_says(self, model: Any, tokenizer: Any, demo: Demo, tmp_path: Path) -> None:
        dcptools.convert(demo.checkpoint, tmp_path / "m", model_assets_dir=demo.assets, dtype="keep", fsync=False)
        reference = load_reference(tmp_path / "m")
        prompt = tokenizer("The shards", return_tensors="pt")["input_ids"]
        made = reference.generate(prompt, max_new_tokens=8, do_sample=False)
        said = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
        assert continuation(model, tokenizer, "The shards", 8) == said
        with torch.no_grad():
            logits = reference(prompt).logits[0, :-1]
        wanted = torch.nn.functional.cross_entropy(logits, prompt[0, 1:]).item()
        assert loss(model, tokenizer, "The shards") == pytest.approx(wanted, rel=1e-6)

    def test_a_text_that_says_too_little(self, model: Any, tokenizer: Any) -> None:
        with pytest.raises(UsageError, match="no tokens"):
            continuation(model, tokenizer, "")
        one = tokenizer.decode([tokenizer("The shards")["input_ids"][0]])
        with pytest.raises(UsageError, match="has one token"):
            loss(model, tokenizer, one)

    def test_a_text_can_be_cancelled(self, model: Any, tokenizer: Any) -> None:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            continuation(model, tokenizer, "The shards", 8, cancel)

    def test_what_was_not_loaded_is_no_nonsense(self, demo: Demo, tokenizer: Any) -> None:
        part = dcptools.load_model(demo.checkpoint, model_assets_dir=demo.assets, keys="model.embed_tokens.*")
        with pytest.raises(UsageError, match="The model gives no loss for this text: "):
            loss(part, tokenizer, "The shards")

    def test_a_reference_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="transformers cannot load the model of"):
            load_reference(tmp_path)
        with pytest.raises(UsageError, match="cannot open the tokenizer of"):
            open_tokenizer(tmp_path)


class TestMemory:
    def group(self, directory: Path, limit: str, used: int, cache: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(limit)
        (directory / "memory.current").write_text(str(used))
        (directory / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")

    def test_the_narrowest_group_around_the_process_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Version 2: as of a batch job in a node's limit; what is cached of files can be given back."""
        self.group(tmp_path, "max\n", 0, 0)
        self.group(tmp_path / "slurm", "9000\n", 3000, 500)
        self.group(tmp_path / "slurm" / "job", "max\n", 100, 0)
        (tmp_path / "self").write_text("12:cpu,cpuacct:/x\n0::/slurm/job\n")
        free = list(memory._groups(tmp_path / "self", tmp_path))
        assert free == [6500]
        monkeypatch.setattr(memory, "_groups", lambda: iter(free))
        assert available_bytes() == 6500

    def test_groups_of_version_1(self, tmp_path: Path) -> None:
        job = tmp_path / "memory" / "job"
        job.mkdir(parents=True)
        (job / "memory.limit_in_bytes").write_text("1000")
        (job / "memory.usage_in_bytes").write_text("1400")
        (job / "memory.stat").write_text("total_inactive_file 100\n")
        (tmp_path / "self").write_text("4:memory:/job\n")
        assert list(memory._groups(tmp_path / "self", tmp_path)) == [0]

    def test_there_is_some_here(self) -> None:
        assert (available_bytes() or 0) > 1 << 20

    def test_published_experts_count_twice_for_they_are_joined(self, demo: Demo, expected_in_process: None) -> None:
        mapping = dcptools.preview(
            demo.checkpoint, model_assets_dir=demo.assets, rename=["lm_head.weight=other"], allow_mismatch=True
        )
        planned = dcptools.plan(mapping)
        (other,) = (t for f in planned.files for t in f.tensors if t.output.name == "other")
        assert memory_needed(planned) == planned.total_bytes + other.nbytes

    def test_a_dictionary_that_torch_has_no_memory_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(NotEnoughMemory):
            memory.MemorySink().create("w", 1 << 40)
