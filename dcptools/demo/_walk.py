"""The whole line on a demo, stage by stage, and then the question that counts: does the result compute the same?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dcptools
from dcptools.demo import Demo
from dcptools.loading import continuation, load_reference, open_tokenizer

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 500_000  # small, so that the tiny model still gives several files
HEAD = 12  # rows of the inspected frame
PROMPT = "Every morning the lighthouse keeper counted the boats that went out, and wrote"
NEW_TOKENS = 16

Echo = Callable[[str], object]


def walk(demo: Demo, echo: Echo) -> bool:
    """Inspect, preview, plan and convert ``demo``, load what came out, and compare its logits with the live weights.

    The results are written to ``hf`` (bfloat16) and ``hf-keep`` (the stored dtype) in the demo's directory.

    Returns
    -------
    bool
        Whether both results give exactly the logits of the live weights.
    """
    show_stages(demo, echo)
    equal = [
        convert_and_compare(demo, echo, "hf", dtype="bfloat16"),
        convert_and_compare(demo, echo, "hf-keep", dtype="keep"),
    ]
    _heading(echo, f"generate: {NEW_TOKENS} tokens (after {demo.steps} steps of training, do not expect sense)")
    model, tokenizer = load_reference(demo.directory / "hf"), open_tokenizer(demo.directory / "hf")
    echo(repr(PROMPT + continuation(model, tokenizer, PROMPT, NEW_TOKENS)))
    _heading(echo, "next")
    echo("All logits are equal." if all(equal) else "Some logits DIFFER: this is a bug in dcptools.")
    echo("`make lab` opens the notebooks, where the same steps are a few clicks.")
    return all(equal)


def show_stages(demo: Demo, echo: Echo) -> None:
    """Print the values before anything is written: what is stored, what it will be called, how it will be cut."""
    checkpoint = dcptools.read(demo.checkpoint)
    _heading(echo, "read: what the metadata says, by container")
    echo(str(checkpoint))
    _heading(echo, f"inspect: the first {HEAD} of all keys, a DataFrame")
    echo(dcptools.inspect(checkpoint).head(HEAD).to_string())
    mapping = dcptools.preview(checkpoint, model_assets_dir=demo.assets)
    _heading(echo, "preview: the name that each tensor gets, and what is left out")
    echo(str(mapping))
    _heading(echo, f"plan: the files, with at most {SHARD_BYTES:,} bytes each")
    echo(str(dcptools.plan(mapping, shard_size=SHARD_BYTES)))


def convert_and_compare(demo: Demo, echo: Echo, name: str, *, dtype: str) -> bool:
    """Convert into the directory ``name`` of the demo and say whether the result gives the live weights' logits."""
    target = demo.directory / name
    _heading(echo, f"convert: dtype {dtype}, into {target}")
    report = dcptools.convert(
        demo.checkpoint, target, model_assets_dir=demo.assets, shard_size=SHARD_BYTES, dtype=dtype, overwrite=True
    )
    echo(str(report))
    _heading(echo, f"compare: {name} in transformers with the live weights, torch.equal on the logits")
    return compare_logits(demo, target, echo)


def compare_logits(demo: Demo, converted: Path, echo: Echo) -> bool:
    """Whether the converted model gives exactly the logits of the live weights, in the dtype it was written in."""
    import torch

    model = load_reference(converted)
    wanted = live_model(demo, model.dtype)
    tokens = open_tokenizer(converted)(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        got, expected = model(tokens).logits, wanted(tokens).logits
    equal = got.dtype == expected.dtype and torch.equal(got, expected)
    shape = " x ".join(str(size) for size in got.shape)
    echo(f"logits ({shape}, {str(got.dtype).removeprefix('torch.')}): {'equal' if equal else 'DIFFERENT'}")
    return equal


def live_model(demo: Demo, dtype: torch.dtype) -> Any:
    """A model of the trainer's config with the live weights, cast to ``dtype``.

    It is made in ``dtype`` and given cast weights. ``model.to(dtype)`` would cast the rotary tables too, which
    neither a trainer nor ``from_pretrained`` does.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM  # transformers annotates only a part of it
    model = factory.from_config(AutoConfig.from_pretrained(demo.assets), dtype=dtype)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in load_file(demo.live).items()}, strict=True)
    return model.eval()


def _heading(echo: Echo, text: str) -> None:
    echo(f"\n== {text} ==")
