"""The files of a model: headers, index, and what is beside the weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import zip_longest
from typing import Any

from dcptools._text import some
from dcptools.assets import ADAPTER_CONFIG, CONFIG, Asset, Assets
from dcptools.errors import DcptoolsError
from dcptools.findings import Finding
from dcptools.hf import Model, WeightFile, read_headers
from dcptools.shards import INDEX, ShardFile, ShardPlan
from dcptools.storage import Source, at_once, open_source, pieces
from dcptools.verifying.library import Opened

_AGAIN = "copy it again, or write the model again"
_FORMATS = ("pt", "tf", "flax", "mlx")  # those that transformers accepts


def about_files(model: Model, plan: ShardPlan | None) -> Iterator[Finding]:
    """Headers and index: as planned, byte for byte; or, without a plan, right and in the usual form."""
    yield from model.findings
    headers = read_headers(model)
    if plan is not None:
        yield from _about_plan(model, plan, headers)
    for file in model.files:
        if file.header_nbytes:
            yield from _about_library(model, file, headers[file.name])
            if plan is None:
                yield from _about_form(file, headers[file.name])
    if plan is None and model.index:
        yield from _about_index_form(model)
    elif plan is None and len(model.files) > 1:
        what = f"the index is missing, and without it nothing finds the weights in {len(model.files)} files"
        yield Finding("model-index", INDEX, what, _AGAIN)
    yield from _about_extra(model)


def _about_plan(model: Model, plan: ShardPlan, headers: Mapping[str, bytes]) -> Iterator[Finding]:
    there = {file.name: file for file in model.files}
    for planned in plan.files:
        if planned.filename in there:
            yield from _about_planned(planned, there[planned.filename], headers)
        else:
            yield Finding("model-file", planned.filename, "it is planned, but the model has no such file", _AGAIN)
    for name in sorted(there.keys() - {planned.filename for planned in plan.files}):
        yield Finding(
            "model-file",
            name,
            "it is a file of the model, but it is not planned",
            "was it cut with another shard size?",
        )
    content = _content(model, INDEX)
    if plan.index is None and content is not None:
        yield Finding("model-index", INDEX, "a model in one file has no index", "remove it")
    elif plan.index is not None and content is None:
        yield Finding("model-index", INDEX, "the index is missing", _AGAIN)
    elif plan.index is not None and content is not None and content != plan.index:
        where = _first_difference(content, plan.index)
        yield Finding("model-index", INDEX, f"it differs from the plan from byte {where:,} on", _AGAIN)


def _about_planned(planned: ShardFile, file: WeightFile, headers: Mapping[str, bytes]) -> Iterator[Finding]:
    if file.nbytes is None or not file.header_nbytes:
        return  # already reported
    if file.nbytes != planned.nbytes:
        said = f"it has {file.nbytes:,} bytes, but {planned.nbytes:,} are planned"
        yield Finding("model-file", file.name, said, _AGAIN)
    found = headers[file.name]
    if found != planned.header:
        where = _first_difference(found, planned.header)
        yield Finding("model-file", file.name, f"its header differs from the plan from byte {where:,} on", _AGAIN)


def _about_library(model: Model, file: WeightFile, header: bytes) -> Iterator[Finding]:
    """Whether the safetensors library reads the header as dcptools does, and transformers would accept it."""
    ours = {weight.name: (weight.dtype.code, weight.shape) for weight in model.by_file[file.name]}
    try:
        theirs = Opened(model, file.name).said(header)
    except DcptoolsError as error:
        yield Finding("model-file", file.name, str(error).splitlines()[0], _AGAIN)
        return
    if not ours.items() <= theirs.items():  # a name that is in two files counts for the first one
        yield Finding("model-file", file.name, "the safetensors library reads its header differently", _AGAIN)
    said = dict(file.metadata).get("format")
    if said not in _FORMATS:
        what = f"its header says the format {said!r}" if said else "its header does not say the format"
        yield Finding("model-file", file.name, f"{what}, but transformers expects pt", _AGAIN)


def _about_form(file: WeightFile, header: bytes) -> Iterator[Finding]:
    """A header that no JSON library writes that way: a byte of its padding or of a name's spelling may have changed."""
    found = header[8:]
    text = json.dumps(json.loads(found), separators=(",", ":"), ensure_ascii=False)
    usual = text.encode(errors="surrogatepass")  # an escape can write half of a surrogate pair, which is not text
    if found != usual + b" " * (len(found) - len(usual)):
        where = 8 + _first_difference(found, usual)
        yield Finding("model-form", file.name, f"its header is not in the usual form from byte {where:,} on")


def _about_index_form(model: Model) -> Iterator[Finding]:
    content = _content(model, model.index)
    if content is None or not model.weight_map:
        return  # already reported
    usual = (json.dumps(json.loads(content), indent=2, sort_keys=True) + "\n").encode()
    if content != usual:
        where = _first_difference(content, usual)
        yield Finding("model-form", model.index, f"it is not in the usual form from byte {where:,} on")
    for name in sorted(model.index_metadata.keys() - {"total_size", "total_parameters"}):
        yield Finding("model-form", model.index, f"its metadata has {name!r}, which nothing reads")
    if "total_size" not in model.index_metadata:
        yield Finding("model-form", model.index, "its metadata has no total_size")


def _about_extra(model: Model) -> Iterator[Finding]:
    known = {file.name for file in model.files}
    for name in model.source.entries() if model.source.location == model.path else ():
        if name.endswith(".safetensors") and name not in known and not name.startswith((".", "adapter_model")):
            yield Finding(
                "model-extra", name, "it is not a file of the model", "remove it if it belongs to another model"
            )
    if model.index != INDEX and _content(model, INDEX) is not None and not model.index:
        what = "there is an index beside model.safetensors, which is loaded instead"
        yield Finding("model-extra", INDEX, what, "remove one of them")


def written_dtype(model: Model) -> str:
    """The floating-point dtype of the most bytes; "" if there is none."""
    counts: Counter[str] = Counter()
    for weight in model.weights.values():
        if weight.dtype.kind == "float":
            counts[weight.dtype.name] += weight.nbytes
    return counts.most_common(1)[0][0] if counts else ""


def about_assets(model: Model, assets: Assets | None, *, exact: bool, made: bool = False) -> Iterator[Finding]:
    """The files beside the weights: those of the assets, and a config that does not contradict the weights.

    If it need not be ``exact``, a config that says the same in another form is a warning. An adapter's config that was
    ``made`` from its tensors says less than its own, so only what tensors tell is compared.
    """
    each = [] if assets is None else [
        _about_made(model, asset) if made and asset.name == ADAPTER_CONFIG
        else _about_asset(model, assets, asset, exact=exact)
        for asset in assets.files
    ]  # fmt: skip
    for found in at_once(model.source, list, [_about_config(model), *each]):
        yield from found


def _about_config(model: Model) -> Iterator[Finding]:
    content = _content(model, CONFIG)
    if content is None:
        return
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        yield Finding("model-config", CONFIG, "it is not a JSON object in UTF-8", _AGAIN)
        return
    said, written = config.get("dtype") or config.get("torch_dtype"), written_dtype(model)
    if said and written and said != written:
        what = f"it says {said}, but most of the weights are {written}"
        yield Finding("model-config", CONFIG, what, 'transformers loads in this dtype with dtype="auto"')


def _about_made(model: Model, made: Asset) -> Iterator[Finding]:
    said, told = _fields(_content(model, ADAPTER_CONFIG) or b""), _fields(made.content or b"")
    if not isinstance(said, dict):
        yield Finding("model-asset", ADAPTER_CONFIG, "it is missing, or is not a JSON object", _AGAIN)
        return
    ranks_differ = said.get("rank_pattern") or told["rank_pattern"]
    fields = ["peft_type", "use_dora", "lora_bias", *([] if ranks_differ else ["r"])]
    wrong = [field for field in fields if (said.get(field) or False) != told[field]]
    if wrong:
        yield Finding("model-asset", ADAPTER_CONFIG, f"its {some(wrong)} differ from what the tensors show", _AGAIN)


def _about_asset(model: Model, assets: Assets, asset: Asset, *, exact: bool) -> Iterator[Finding]:
    name, rewritten = asset.name, asset.content
    if name == CONFIG:
        rewritten = assets.config_for(written_dtype(model) or "float32")
    try:
        if rewritten is not None:
            found = model.source.content(name)
            where = None if found == rewritten else _first_difference(found, rewritten)
        else:
            where = _files_differ(model.source, open_source(assets.directory), name)
    except (OSError, DcptoolsError) as error:
        said = (error.strerror or str(error)) if isinstance(error, OSError) else str(error).splitlines()[0]
        yield Finding("model-asset", name, f"it cannot be compared: {said}", _AGAIN)
        return
    if where is None or (not exact and name == CONFIG and found == assets.config.encode()):
        return
    if not exact and rewritten is not None and _fields(found) == _fields(rewritten):
        yield Finding("model-form", name, f"it says the same as the assets, in another form from byte {where:,} on")
        return
    fields = _different_fields(found, rewritten) if rewritten is not None else []
    what = f"its {some(fields)} differ from the assets'" if fields else f"it differs from the assets' at byte {where:,}"
    yield Finding("model-asset", name, what, _AGAIN)


def _fields(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _different_fields(one: bytes, other: bytes) -> list[str]:
    first, second = _fields(one), _fields(other)
    if not isinstance(first, dict) or not isinstance(second, dict):
        return []
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _files_differ(source: Source, other: Source, name: str) -> int | None:
    """The first byte at which two files of that name differ."""
    at = 0
    with closing(other), closing(pieces(source, name)) as one, closing(pieces(other, name)) as two:
        for first, second in zip_longest(one, two, fillvalue=b""):
            if first != second:
                return at + _first_difference(first, second)
            at += len(first)
    return None


def _first_difference(one: bytes, other: bytes) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _content(model: Model, name: str) -> bytes | None:
    """The whole of a small file of the model's directory; None if it is not there or not small."""
    try:
        state = model.source.state(name)
        return model.source.content(name) if state is not None and state.nbytes <= 100_000_000 else None
    except OSError:
        return None
