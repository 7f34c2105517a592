"""The two laws of the project, for any checkpoint: what is read equals what was saved, and what is written equals,
byte for byte, what torch and safetensors would write. Tensors are cut, laid out and filled in every way there is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import full_load, raw, read_files, saved_files
from safetensors.torch import load_file
from torch import Tensor

import dcptools
from dcptools.tensors import Checksums, TensorReader
from dcptools.writer.cut import Sizes

INDEX = "model.safetensors.index.json"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OTHERS = (torch.int64, torch.int8, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.complex64)
SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple) | st.sampled_from([(0,), (3, 0), (40,), (2, 30)])
Shape = tuple[int, ...]


@st.composite
def values(draw: st.DrawFn, dtype: torch.dtype, shape: Shape) -> Tensor:
    """Any bits, or ordinary numbers with NaN, Inf, -0.0, subnormals, and what a narrower type rounds or overflows."""
    seed = draw(st.integers(0, 1 << 30))
    if dtype not in FLOATS or draw(st.booleans()):
        return saved.random_bits(dtype, shape, seed)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    special = saved.special_floats(dtype)
    order = torch.randperm(len(special), generator=torch.Generator().manual_seed(seed))
    flat = tensor.view(-1)
    flat[: len(special)] = special[order][: len(flat)]
    return tensor


# Casts in which torch gives a NaN other bits in its vectorised loop than in the scalar one, which handles the last
# few elements of a buffer: 0x7FC00000 or 0x7FFFFFFF. So the bits of a NaN show how long a buffer was, and there is no
# truth to compare with; all other casts are compared for any NaN.
NAN_BY_PLACE = {(torch.float16, "float32"), (torch.float64, "bfloat16")}


@st.composite
def cut(draw: st.DrawFn, shape: Shape) -> list[list[tuple[int, int]]]:
    """Boxes that tile the shape: cut at random, box by box, along any dimension, in any order."""
    boxes = [[(0, n) for n in shape]]
    for _ in range(draw(st.integers(0, 4))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dims = [dim for dim, (start, stop) in enumerate(box) if stop - start > 1]
        if not dims:
            boxes.append(box)
            continue
        dim = draw(st.sampled_from(dims))
        at = draw(st.integers(box[dim][0] + 1, box[dim][1] - 1))
        boxes += [[*box[:dim], (box[dim][0], at), *box[dim + 1 :]], [*box[:dim], (at, box[dim][1]), *box[dim + 1 :]]]
    return draw(st.permutations(boxes))


@st.composite
def laid_out(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """The same values in another memory layout: permuted, in the middle of something larger, lazily conjugated."""
    ways = ["dense", "permuted", "inside", "stepped", "parameter"]
    ways += ["conjugate"] if tensor.dtype == torch.complex64 else []
    way = draw(st.sampled_from(ways))
    if way == "permuted":
        order = draw(st.permutations(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(tensor.dim())])
    if way in ("inside", "stepped") and tensor.dim():
        step = 2 if way == "stepped" else 1
        larger = torch.zeros([n * step + 3 for n in tensor.shape], dtype=tensor.dtype)
        view = larger[tuple(slice(2, 2 + n * step, step) for n in tensor.shape)]
        return view.copy_(tensor)
    if way == "conjugate":
        return tensor.conj().resolve_conj().conj()
    if way == "parameter":
        return torch.nn.Parameter(tensor.clone(), requires_grad=False)
    return tensor.clone(memory_format=torch.contiguous_format)


@st.composite
def chunks(draw: st.DrawFn, tensor: Tensor) -> list[saved.Placed]:
    placed: list[saved.Placed] = []
    for box in draw(cut(tuple(tensor.shape))):
        part = tensor[tuple(slice(start, stop) for start, stop in box)]
        placed.append(([start for start, _ in box], draw(laid_out(part))))
    return placed


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_region_is_what_was_saved(data: st.DataObject) -> None:
    dtype, shape = data.draw(st.sampled_from((*FLOATS, *OTHERS, torch.complex128))), data.draw(SHAPES)
    tensor = data.draw(values(dtype, shape))
    placed = data.draw(chunks(tensor))
    pairs = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    region = [(start, stop) for start, stop in pairs]
    with tempfile.TemporaryDirectory() as name:
        directory = saved.save_chunks(Path(name), {"a": placed}, files=data.draw(st.integers(1, 3)))
        tensor_read = dcptools.read(directory)["a"]
        reader = TensorReader(tensor_read, Checksums(), scratch_bytes=data.draw(st.integers(16, 300)))
        out = np.empty([stop - start for start, stop in region], reader.bits)
        reader.read_region(region, out)
    assert out.tobytes() == raw(tensor[tuple(slice(start, stop) for start, stop in region)])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
@pytest.mark.parametrize("written", ["bfloat16", "float16", "float32", "keep"])
def test_files_are_what_torch_and_safetensors_write(written: str, data: st.DataObject) -> None:
    """Compared with ``safetensors.torch.save_file`` of torch's own full load, cast with ``.to(dtype)``."""
    state = {}
    for number in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(st.sampled_from((*FLOATS, *FLOATS, *OTHERS)))
        tensor = data.draw(values(dtype, data.draw(SHAPES)))
        if (dtype, written) in NAN_BY_PLACE:
            tensor = tensor.nan_to_num(0.0, torch.inf, -torch.inf)
        state[f"model.model.{number}"] = data.draw(chunks(tensor))
    sizes = Sizes(slab_bytes=data.draw(st.integers(8, 400)))
    with tempfile.TemporaryDirectory() as name:
        directory = saved.save_chunks(Path(name) / "a", state, files=data.draw(st.integers(1, 3)))
        plan = dcptools.plan(directory, shard_size=data.draw(st.integers(1, 500)), dtype=written)
        out = Path(name) / "out"
        report = dcptools.write(plan, out, workers=data.draw(st.integers(1, 4)), fsync=False, sizes=sizes)
        files = read_files(out)
        loaded = {key.removeprefix("model."): tensor for key, tensor in full_load(directory).items()}
    assert (files.pop(INDEX, None) is None) == (len(plan.files) == 1)
    assert files == saved_files(loaded, plan)
    assert (report.items_unchecked, report.items_without_checksum) == (0, 0)


@pytest.mark.parametrize(("dtype", "written"), sorted(NAN_BY_PLACE, key=str))
def test_nan_stays_nan_where_its_bits_depend_on_its_place(dtype: torch.dtype, written: str, tmp_path: Path) -> None:
    tensor = saved.random_bits(dtype, (1000,))
    tensor[::7] = torch.nan
    directory = saved.save(tmp_path / "a", {"model": {"model.w": tensor}})
    dcptools.write(dcptools.plan(directory, dtype=written), tmp_path / "out", fsync=False, sizes=Sizes(slab_bytes=100))
    result = load_file(tmp_path / "out" / "model.safetensors")["model.w"]
    expected = tensor.to(getattr(torch, written))
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result[~result.isnan()], expected[~expected.isnan()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("written", ["bfloat16", "float16", "float32"])
def test_the_nan_of_a_0_dimensional_tensor(dtype: torch.dtype, written: str, tmp_path: Path) -> None:
    """torch casts it by other code than the one of shape (1,): to bfloat16 it is 0x7FC0, and not 0xFFFF."""
    tensor = torch.tensor(torch.nan, dtype=dtype)
    directory = saved.save(tmp_path / "a", {"model": {"model.w": tensor, "model.v": tensor.reshape(1)}})
    plan = dcptools.plan(directory, dtype=written)
    dcptools.write(plan, tmp_path / "out", fsync=False)
    assert read_files(tmp_path / "out") == saved_files({"model.w": tensor, "model.v": tensor.reshape(1)}, plan)
