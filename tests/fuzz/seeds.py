"""What the fuzzers begin with: for each class of files some checkpoints or models, with one file that is theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from dcptools.expected import building
from tests.checkpoints import broken, edit, hostile, hostile_items, saved

DATA = Path(__file__).parents[1] / "data"
METADATA, ITEM, SHARD = ".metadata", "__0_0.distcp", "shard-00001-model-00001-of-00001.safetensors"
SMALL = {"model.w": torch.arange(12.0).reshape(3, 4), "lm_head.weight": torch.ones(2, 3, dtype=torch.bfloat16)}
Seeds = Iterator[tuple[Path, str]]  # a directory, and the file in it that is to be changed


def metadata(place: Path) -> Seeds:
    """Checkpoints that torch, and those who mean harm, write."""
    makers: list[Callable[[Path], Path]] = [
        saved.extra_state, saved.replicated_chunks, saved.zstd, saved.megatron_like, saved.own_storage_info,
        saved.old_torch_metadata, saved.windows_paths, saved.safetensors_format, broken.escaping_path, broken.overlap,
    ]  # fmt: skip
    for maker in makers:
        maker(place / maker.__name__)
        yield place / maker.__name__, METADATA
    yield saved.trained(place / "small", dict(SMALL)), METADATA
    yield saved.save(place / "older", {"model": dict(SMALL)}), METADATA
    sample = hostile.checkpoint(place / "sample", b"")
    shutil.copy(DATA / "metadata" / "2.2.2", sample / METADATA)
    yield sample, METADATA
    for name, make in {**hostile.RUNNERS, "persistent": lambda _marker: hostile.persistent_id()}.items():
        yield hostile.checkpoint(place / name, make(place / f"{name}.marker")), METADATA
    for name, poison in hostile.POISONERS.items():
        yield hostile.checkpoint(place / name, poison()), METADATA


def items(place: Path) -> Seeds:
    """Checkpoints of one tensor each; the file of values is its item."""
    tensor = torch.arange(12.0).reshape(3, 4)
    payloads = {
        "dense": edit.torch_item(tensor),
        "transposed": edit.torch_item(tensor.reshape(4, 3).t()),
        "view": edit.torch_item(torch.arange(40.0)[4:36].reshape(4, 8)[:3, 1::2]),
        "parameter": edit.torch_item(torch.nn.Parameter(tensor)),
        "bfloat16": edit.torch_item(tensor.bfloat16()),
        "fp8": edit.torch_item(tensor.to(torch.float8_e4m3fn)),
        "uint16": edit.torch_item(tensor.to(torch.uint16)),
        "conjugate": edit.torch_item(torch.complex(tensor, tensor).conj()),
        "again": hostile_items.archive([
            hostile_items.Part(name, content) for name, content in edit.item_parts(edit.torch_item(tensor)).items()
        ]),
        "end64": _with_end64(edit.torch_item(tensor)),
    }  # fmt: skip
    for name, payload in payloads.items():
        dtype = {"bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "uint16": torch.uint16,
                 "conjugate": torch.complex64}.get(name, torch.float32)  # fmt: skip
        directory = saved.save(place / name, {"model.w": tensor.to(dtype)})
        with edit.editing(directory) as found:
            (info,) = found.storage_data.values()
            info.offset, info.length = 0, len(payload)
        (directory / ITEM).write_bytes(payload)
        yield directory, ITEM


def _with_end64(payload: bytes) -> bytes:
    """The second end record too, which torch writes for archives of more than 4 GB."""
    at = payload.rindex(b"PK\x05\x06")
    count, nbytes, start = (
        int.from_bytes(payload[at + a : at + b], "little") for a, b in ((10, 12), (12, 16), (16, 20))
    )
    records = hostile_items.end64(count, nbytes, start) + hostile_items.locator(start + nbytes)
    plain = payload[: start + nbytes]
    return plain + records + hostile_items.end(count, nbytes, start)


def headers(place: Path) -> Seeds:
    """Models of one file, and shards of a distributed save."""
    for name, tensors in {
        "plain": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
        "dtypes": {str(n): torch.ones(2).to(dtype) for n, dtype in enumerate(saved.DTYPES[:8])},
        "scalar": {"x": torch.tensor(1), "empty": torch.ones(0, 3)},
    }.items():
        (place / name).mkdir()
        save_file(tensors, place / name / "model.safetensors", {"format": "pt"})
        yield place / name, "model.safetensors"
    directory = saved.hf_dcp(place / "shards", dict(SMALL))
    (only,) = [path.name for path in directory.iterdir() if path.name.startswith("shard-")]
    yield directory, only


def indexes(place: Path) -> Seeds:
    directory = place / "model"
    directory.mkdir()
    names = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for file, name in names.items():
        save_file({name: torch.ones(3)}, directory / file, {"format": "pt"})
    weight_map = {name: file for file, name in names.items()}
    said = {"metadata": {"total_size": 24, "total_parameters": 6}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(said))
    yield directory, "model.safetensors.index.json"


def configs(place: Path) -> Seeds:
    for config in sorted(DATA.glob("trainers/*/config.json"))[::3]:
        directory = place / config.parent.name
        directory.mkdir()
        shutil.copy(config, directory)
        yield directory, config.name


def architectures(place: Path) -> Seeds:
    """Of models that are built here, so that what is imported for them is imported before somebody watches."""
    for trainer in ("torchtitan-deepseek-v3", "veomni-qwen3-moe", "accelerate-gemma3", "lightning-llama"):
        directory = place / trainer
        directory.mkdir()
        shutil.copy(DATA / "trainers" / trainer / "config.json", directory)
        building.describe(building.build(json.loads((directory / "config.json").read_text())))
        yield directory, "config.json"


def adapter_configs(place: Path) -> Seeds:
    """A checkpoint of an adapter with its config."""
    lora = {
        f"base_model.model.model.layers.{layer}.q_proj.lora_{side}.default.weight": torch.ones(shape)
        for layer in range(2)
        for side, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    configs = (
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"},
        {"peft_type": "LORA", "r": 8, "rank_pattern": {"layers.[01].q_proj": 2, "^x": 3}, "modules_to_save": ["head"],
         "target_modules": "all-linear", "use_dora": False, "lora_bias": False, "target_parameters": None},
    )  # fmt: skip
    for number, config in enumerate(configs):
        directory = saved.trained(place / str(number), dict(lora), optimizer=False)
        (directory / "adapter_config.json").write_text(json.dumps(config))
        yield directory, "adapter_config.json"


_FAMILY = """
trainer = "ours"
model = "Tiny"
architectures = ["TinyForCausalLM"]

[sizes]
two = 2

[weights]
"model.w" = "w.weight"
"blocks.{n}.q" = { name = "layers.{n}.q.weight", rearrange = "(two half) in -> (half two) in", differ = ["in"] }
"blocks.{n}.experts" = { name = "layers.{n}.experts.{e}.weight", rearrange = "e in out -> {e} out in" }

[left_out]
"lm_head.weight" = "stays with the trainer"
"""


def families(place: Path) -> Seeds:
    """A family of one's own and some of those that come with dcptools, each beside a small checkpoint."""
    state = {**SMALL, "blocks.0.q": torch.ones(4, 3), "blocks.0.experts": torch.ones(2, 3, 4)}
    tables = sorted((Path(__file__).parents[2] / "dcptools" / "layouts" / "families").glob("*.toml"))
    for name, text in {"own": _FAMILY, **{table.stem: table.read_text() for table in tables[::4]}}.items():
        directory = saved.save(place / name, dict(state))
        (directory / "family.toml").write_text(text)
        yield directory, "family.toml"


def rules(place: Path) -> Seeds:
    said = (
        "# ours to theirs\n\nmodel\\.(.*)=language_model.\\1\nlm_head\\.weight=head\n",
        "(?P<all>.+)=\\g<all>.x\n^model[.]w$=m\nlm_(head|x)\\.(weight)=\\2.\\1\n",
    )
    for number, text in enumerate(said):
        directory = saved.trained(place / str(number), dict(SMALL), optimizer=False)
        (directory / "rules.txt").write_text(text)
        yield directory, "rules.txt"
