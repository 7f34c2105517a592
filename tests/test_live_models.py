"""Live models of transformers, sharded by FSDP2 over two processes: the result is what ``save_pretrained`` writes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import live_models
from reference import assert_same, raw
from safetensors.torch import load_file, save_file

import dcptools

pytestmark = pytest.mark.usefixtures("expected_in_process")
# Experts in one tensor, published one by one
FUSED = {"qwen3-moe", "mixtral", "deepseek-v3", "olmoe", "glm4-moe", "nemotron-h"}
RENAMED = {"qwen2.5-vl", "llava"}  # towers with other names


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_models.save_models(tmp_path_factory.mktemp("live") / "models")


@functools.cache
def live(name: str) -> Any:
    """The very model, built once more: what it says depends on the number of threads too."""
    return live_models.build(live_models.config_of(name))


def weights(directory: Path) -> dict[str, Any]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", live_models.LIVE)
@pytest.mark.parametrize("names", ["stored", "published"])
def test_names_shapes_dtypes_and_bits_are_those_of_save_pretrained(
    name: str, names: str, saved: Path, tmp_path: Path
) -> None:
    report = dcptools.convert(
        saved / name,
        tmp_path / "out",
        model_assets_dir=saved / f"{name}.config",
        names=names,
        dtype="keep",
        fsync=False,
    )
    assert_same(weights(tmp_path / "out"), weights(saved / f"{name}.{names}"))
    assert not report.warnings


@pytest.mark.parametrize("name", live_models.LIVE)
@pytest.mark.parametrize("names", ["stored", "published"])
def test_the_result_loads_and_says_what_the_live_model_said(name: str, names: str, saved: Path, tmp_path: Path) -> None:
    import transformers

    assets = saved / f"{name}.config"
    dcptools.convert(
        saved / name, tmp_path / "out", model_assets_dir=assets, names=names, dtype="keep", shard_size=4000, fsync=False
    )
    made: Any = getattr(transformers, live_models.LIVE[name][0])
    model, info = made.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for parameter in model.parameters():  # kernels of experts round by how their memory is aligned, here in a file
        parameter.data = parameter.data.clone()
    assert torch.equal(live_models.logits_of(model.eval()), live_models.logits_of(live(name)))


def ties(model: Any) -> set[frozenset[str]]:
    """Names of one and the same parameter."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(tied) for tied in names.values() if len(tied) > 1}


@pytest.mark.parametrize(
    ("name", "names", "dtype"),
    [
        *((name, "stored", "bfloat16") for name in live_models.LIVE),
        *((name, "published", "bfloat16") for name in sorted(FUSED | RENAMED)),
        *((name, "stored", "keep") for name in ("llama", "qwen3-tied", "t5", "glm4-moe")),
        *((name, "stored", "float16") for name in ("t5", "deepseek-v3")),  # keep parts in float32
    ],
)
def test_the_model_that_is_not_written_is_the_one_that_loads_when_it_is(
    name: str, names: str, dtype: str, saved: Path, tmp_path: Path
) -> None:
    import transformers

    mapping = dcptools.preview(saved / name, model_assets_dir=saved / f"{name}.config", names=names)
    loaded = dcptools.load_model(mapping, dtype=dtype)
    dcptools.write(dcptools.plan(mapping, dtype=dtype), tmp_path / "out", fsync=False)
    written = getattr(transformers, live_models.LIVE[name][0]).from_pretrained(tmp_path / "out", dtype="auto")
    assert type(loaded) is type(written)
    assert not loaded.training
    assert ties(loaded) == ties(written)
    for kind in ("named_parameters", "named_buffers"):
        got, want = dict(getattr(loaded, kind)()), dict(getattr(written, kind)())
        assert got.keys() == want.keys()
        for each, tensor in want.items():
            assert (got[each].dtype, got[each].shape) == (tensor.dtype, tensor.shape), each
            assert raw(got[each].detach()) == raw(tensor.detach()), each
    for parameter in written.parameters():  # kernels of experts round by how their memory is aligned, here in a file
        parameter.data = parameter.data.clone()
    assert torch.equal(live_models.logits_of(loaded), live_models.logits_of(written))


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek-v3", "glm4-moe", "t5"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_a_narrower_dtype_it_is_what_a_model_loaded_so_writes(
    name: str, dtype: str, saved: Path, tmp_path: Path
) -> None:
    """Also what such a model keeps in float32."""
    import transformers

    made: Any = getattr(transformers, live_models.LIVE[name][0])
    narrow = made.from_pretrained(saved / f"{name}.published", dtype=getattr(torch, dtype))
    narrow.save_pretrained(tmp_path / "wanted")
    assets = saved / f"{name}.config"
    report = dcptools.convert(
        saved / name, tmp_path / "out", model_assets_dir=assets, names="published", dtype=dtype, fsync=False
    )
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "wanted"))
    kept = {tensor.dtype for tensor in weights(tmp_path / "wanted").values()} == {torch.float32, getattr(torch, dtype)}
    assert ("kept-float32" in {finding.code for finding in report.findings}) == kept


@pytest.mark.parametrize("name", live_models.LIVE)
def test_the_preview_says_which_model_it_is_and_whether_names_differ(name: str, saved: Path) -> None:
    mapping = dcptools.preview(saved / name, model_assets_dir=saved / f"{name}.config")
    architecture, *_, root = live_models.LIVE[name]
    assert mapping.fit is not None
    assert mapping.fit.complete
    assert mapping.fit.sentence.startswith(f"This is {architecture}: ")
    assert mapping.root == root
    assert ("names" in {f.code for f in mapping.findings}) == (name in FUSED | RENAMED)
    assert not mapping.warnings


@pytest.mark.parametrize("name", sorted(FUSED))
def test_published_experts_are_views_of_the_stored_ones(name: str, saved: Path) -> None:
    mapping = dcptools.preview(saved / name, model_assets_dir=saved / f"{name}.config", names="published")
    split = [output for output in mapping.outputs if ".experts.3." in output.name]
    assert split
    assert all(output.numel < mapping.checkpoint[output.sources[0].key].numel for output in split)
    assert len({view.key for output in mapping.outputs for view in output.sources}) == len(mapping.checkpoint.tensors)


def test_who_verifies_by_other_names_is_told_those_of_the_model(saved: Path, tmp_path: Path) -> None:
    checkpoint, config = saved / "qwen3-moe", saved / "qwen3-moe.config"
    for names in ("stored", "published"):
        dcptools.convert(checkpoint, tmp_path / names, model_assets_dir=config, names=names, fsync=False)
    for names, options in (
        ("published", {}),  # the model's own config says what the published names are
        ("published", {"model_assets_dir": config}),
        ("stored", {"model_assets_dir": config, "names": "published"}),
    ):
        findings = dcptools.verify(tmp_path / names, checkpoint, **options).findings  # type: ignore[arg-type]
        assert {finding.code for finding in findings} == {"disk-missing", "disk-unexpected"}
        assert {finding.hint for finding in findings} == {
            f"the model's names are those of names='{names}': give that, or write it again"
        }


def test_a_model_that_lacks_a_weight_has_the_names_of_no_option(saved: Path, tmp_path: Path) -> None:
    checkpoint, config = saved / "qwen3-moe", saved / "qwen3-moe.config"
    dcptools.convert(checkpoint, tmp_path, model_assets_dir=config, names="published", fsync=False, overwrite=True)
    tensors = weights(tmp_path)
    tensors.popitem()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    findings = dcptools.verify(tmp_path, checkpoint, model_assets_dir=config).findings
    (hint,) = {finding.hint for finding in findings if finding.code.startswith("disk-")}
    assert hint == "give the options that it was converted with, such as model_assets_dir=, or write it again"


def test_a_checkpoint_under_published_names_needs_nothing(saved: Path, tmp_path: Path) -> None:
    """As an older transformers' model, or one that a trainer keeps unfused, was saved."""
    from checkpoints.saved import save

    published = weights(saved / "qwen3-moe.published")
    checkpoint = save(tmp_path / "c", {"model": published})
    for names in ("stored", "published"):
        mapping = dcptools.preview(checkpoint, model_assets_dir=saved / "qwen3-moe.config", names=names)
        assert [output.name for output in mapping.outputs] == sorted(published)
        assert not mapping.warnings
        assert [f.message for f in mapping.findings if f.code == "names"] == [
            "the checkpoint has the published names already (24 published names); they are written"
        ]


# Options that ask for nothing else than the model, wherever it is and however it is cut.
THE_MODEL: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"root": "model", "tied": "drop", "unexpected": "drop", "allow_mismatch": True, "mode": "full"}),
    ("llama", {"layout": "container", "include": "model.*", "tied": "keep"}),
    ("qwen3-tied", {"layout": "bare", "rename": r"(x)?(.*)=\1\2"}),
    ("qwen3", {"root": "app.model", "include": ["app.*"]}),
    ("qwen3-tied", {"exclude": "lm_head.weight"}),
    ("qwen3-moe", {"names": "published", "shard_size": 300}),
    ("llava", {"names": "published", "shard_size": 700, "unexpected": "drop"}),
    ("t5", {"exclude": ["*coder.embed_tokens.weight", "lm_head.*"]}),
]


@pytest.mark.parametrize(("name", "options"), THE_MODEL, ids=[f"{name} {'+'.join(given)}" for name, given in THE_MODEL])
def test_options_that_change_nothing_give_the_model(
    name: str, options: dict[str, Any], saved: Path, tmp_path: Path
) -> None:
    config = saved / f"{name}.config"
    dcptools.convert(
        saved / name, tmp_path / "out", model_assets_dir=config, dtype="keep", strict=True, verify=True, **options
    )
    right = weights(saved / f"{name}.{options.get('names', 'stored')}")
    assert_same(weights(tmp_path / "out"), right)
    options.pop("shard_size", None)
    mapping = dcptools.preview(saved / name, model_assets_dir=config, **options)
    assert_same(dict(dcptools.load_state_dict(mapping, dtype="keep")), right)


SWAPPED = {r"(.*)gate_proj(.*)": r"\1up_proj\2", r"(.*)up_proj(.*)": r"\1gate_proj\2"}
# Options, with changes of the config, that give another model; all names and shapes are right in most of them.
ANOTHER: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("llama", {"exclude": "*lm_head*"}, {}, "weight-missing"),
    ("llama", {"exclude": "*lm_head*"}, {"architectures": ["OursForCausalLM"]}, "weight-missing"),
    ("llama", {"rename": SWAPPED}, {}, "renamed-away"),
    ("qwen3-moe", {"rename": SWAPPED, "names": "published"}, {}, "renamed-away"),
    ("llama", {"unexpected": "drop"}, {"num_hidden_layers": 1}, "left-out-tensor"),
    (
        "classifier", {"unexpected": "drop"},
        {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}, "left-out-tensor",
    ),
    ("llama", {"tied": "keep"}, {"tie_word_embeddings": True}, "tied-kept"),
    ("llama", {"tied": "drop"}, {"tie_word_embeddings": True}, "tied-dropped"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "changes", "code"), ANOTHER, ids=[f"{name} {'+'.join(a | b)}" for name, a, b, _ in ANOTHER]
)
def test_options_that_give_another_model_are_a_warning(
    name: str, options: dict[str, Any], changes: dict[str, Any], code: str, saved: Path, tmp_path: Path
) -> None:
    config = live_models.config_of(name) | changes
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    (tmp_path / "config" / "tokenizer.json").write_text("{}")
    asked = {"model_assets_dir": tmp_path / "config", **options}
    report = dcptools.convert(saved / name, tmp_path / "out", **asked, verify=True)
    assert {finding.code for finding in report.warnings} == {code}
    assert not dcptools.verify(tmp_path / "out", saved / name, model_assets_dir=saved / f"{name}.config").ok
