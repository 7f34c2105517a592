"""Both sides of a comparison give the values that torch has, in whatever pieces they are asked for."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import distributed, saved
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import dcptools
from dcptools.checkpoint import Checkpoint
from dcptools.comparing import CutSide, Pair, Piece, Readers, StoredSide, Streaming, WeightSide, sides, streaming
from dcptools.dtypes import TABLE
from dcptools.errors import Cancelled, UsageError
from dcptools.hf import read_model
from dcptools.storage import LocalSource
from dcptools.tensors import View


def whole(side: CutSide, numel: int, itemsize: int, most: int) -> bytes:
    """All values of a side, put together from its pieces; each element must come once."""
    out = np.zeros(numel, f"u{itemsize}")
    seen = np.zeros(numel, int)
    for piece, read in side.cut(most):
        values = read(np.empty(piece.numel, out.dtype)).reshape(-1)
        elements = piece.elements(np.arange(piece.numel))
        out[elements] = values
        seen[elements] += 1
    assert (seen == 1).all()
    return out.tobytes()


def flat(tensor: Tensor) -> bytes:
    values = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return values.view(torch.uint8).numpy().tobytes()


STACK = torch.arange(4 * 6 * 10, dtype=torch.float32).reshape(4, 6, 10)
VIEWS: dict[str, tuple[list[View], Tensor]] = {
    "whole": ([View("w", (4, 6, 10), (60, 10, 1), 0)], STACK),
    "one expert": ([View("w", (6, 10), (10, 1), 120)], STACK[2]),
    "transposed": ([View("w", (10, 6), (1, 10), 60)], STACK[1].t()),
    "permuted": ([View("w", (10, 4, 6), (1, 60, 10), 0)], STACK.permute(2, 0, 1)),
    "rows of rotary halves": ([View("w", (2, 12, 10), (10, 20, 1), 0)], STACK.reshape(12, 2, 10).transpose(0, 1)),
    "every third column": ([View("w", (24, 4), (10, 3), 0)], STACK.reshape(24, 10)[:, ::3]),
    "a row twice": ([View("w", (2, 10), (0, 1), 30)], STACK.reshape(24, 10)[3].repeat(2, 1)),
    "several": (
        [View("w", (10, 6), (1, 10), 0), View("w", (3, 10), (10, 1), 50), View("w", (0, 10), (10, 1), 0)],
        torch.cat([STACK[0].t().reshape(-1), STACK.reshape(-1)[50:80]]),
    ),
}


def stored(directory: Path, order: tuple[int, ...] = (0, 1, 2)) -> Checkpoint:
    """The stack in two chunks, whose values lie in another order where that is asked for."""
    back = [order.index(dim) for dim in range(3)]
    halves = [((0, 0, n), STACK[:, :, n : n + 5].permute(order).contiguous().permute(back)) for n in (0, 5)]
    return dcptools.read(saved.save_chunks(directory, {"w": halves}))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("most", [1, 7, 40, 1000])
@pytest.mark.parametrize("name", VIEWS)
def test_what_a_checkpoint_has_in_pieces(name: str, most: int, order: tuple[int, ...], tmp_path: Path) -> None:
    views, expected = VIEWS[name]
    side = StoredSide(views, Readers(stored(tmp_path / "c", order), [view.key for view in views]))
    assert whole(side, expected.numel(), 4, most) == flat(expected)


@pytest.mark.parametrize("name", VIEWS)
def test_pieces_that_were_cut_for_another_side(name: str, tmp_path: Path) -> None:
    """A checkpoint and a file, each read as the other one is cut."""
    views, expected = VIEWS[name]
    checkpoint = stored(tmp_path / "c")
    save_file({"w": expected.contiguous()}, tmp_path / "model.safetensors")
    model = read_model(tmp_path)
    weight = WeightSide(model, model.weights["w"])
    for most in (7, 100):
        mine = StoredSide(views, Readers(checkpoint, [view.key for view in views]))
        for one, other in ((mine, weight), (weight, mine)):
            for piece, read in one.cut(most):
                first = read(np.empty(piece.numel, "u4")).copy()
                assert np.array_equal(first, other.reading(piece)(np.empty(piece.numel, "u4")))


@pytest.mark.parametrize("name", ["whole", "one expert", "rows of rotary halves"])
def test_what_is_read_of_a_place_that_is_far_was_announced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, expected = VIEWS[name]
    save_file({"w": expected.contiguous()}, tmp_path / "model.safetensors")
    checkpoint, model, said = stored(tmp_path / "c"), read_model(tmp_path), set[tuple[str, int]]()
    read_into = LocalSource.read_into

    def will_read(self: LocalSource, ranges: Iterable[tuple[str, int, int]]) -> None:
        said.update((name, at) for name, start, count in ranges for at in range(start, start + count))

    def read_announced(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        assert said.issuperset((name, at) for at in range(start, start + out.nbytes))
        read_into(self, name, start, out)

    for attribute, value in (("ahead", True), ("will_read", will_read), ("read_into", read_announced)):
        monkeypatch.setattr(LocalSource, attribute, value)
    monkeypatch.setattr(sides, "SHORT_RUN_BYTES", 4)
    monkeypatch.setattr(streaming, "PIECE_BYTES", 100)
    dtype, readers = TABLE["float32"], Readers(checkpoint, ["w"])
    pair = Pair("w", 1, dtype, dtype, lambda: (StoredSide(views, readers), WeightSide(model, model.weights["w"])))
    compared: Streaming[bool] = Streaming([[pair]], lambda pair, piece, left, right, _: np.array_equal(left, right))
    compared.run("", workers=1, progress=None, cancel=None)
    assert set(compared.found("w")) == {True}
    assert said


@given(data=st.data())
def test_any_view_of_any_tensor(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = _SHARED.setdefault("c", stored(tmp_path_factory.mktemp("any") / "c"))
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    strides = tuple(data.draw(st.integers(0, 12)) for _ in shape)
    last = sum(max(size - 1, 0) * stride for size, stride in zip(shape, strides, strict=True))
    view = View("w", shape, strides, data.draw(st.integers(0, STACK.numel() - 1 - last)))
    side = StoredSide([view], Readers(checkpoint, ["w"]))
    expected = STACK.reshape(-1).as_strided(shape, strides, view.offset)
    assert whole(side, math.prod(shape), 4, data.draw(st.integers(1, 60))) == flat(expected)


_SHARED: dict[str, Checkpoint] = {}


def test_every_way_to_shard(cases: dict[str, Path]) -> None:
    for name, directory in cases.items():
        if name in distributed.WITHOUT_METADATA:
            continue
        checkpoint, expected = dcptools.read(directory), distributed.expected(directory)
        for key, tensor in expected.items():
            side = StoredSide([View.whole(checkpoint[key])], Readers(checkpoint, [key]))
            values = tensor.resolve_conj().resolve_neg()
            if values.element_size() <= 8:
                assert whole(side, values.numel(), values.element_size(), 5) == flat(values), (name, key)


def test_a_key_of_many_outputs_is_opened_once(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path / "c")
    readers = Readers(checkpoint, ["w", "w", "w"])
    assert len({id(readers.get("w")) for _ in range(3)}) == 1


class _Values:
    """A side that is an array."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values, "u4")
        self.source = LocalSource("nowhere")

    def frames(self) -> Iterator[Any]:
        return iter(())

    def places(self, piece: Piece) -> Iterator[Any]:
        return iter(())

    def cut(self, most: int) -> Iterator[tuple[Piece, Any]]:
        for start in range(0, len(self._values), most):
            piece = Piece.range(start, min(start + most, len(self._values)))
            yield piece, self.reading(piece)

    def reading(self, piece: Piece) -> Any:
        return lambda out: self._values[piece.offset : piece.offset + piece.numel]


def pair(name: str, count: int) -> Pair:
    dtype = TABLE["float32"]
    return Pair(name, count, dtype, dtype, lambda: (_Values(range(count)), _Values([0] * count)))


class TestStreaming:
    def test_what_is_found_comes_in_the_order_of_its_place(self) -> None:
        streaming: Streaming[int] = Streaming([[pair("a", 1 << 22)], [pair("b", 10)]], _first)
        seen: list[tuple[int, int]] = []
        streaming.run("", workers=3, progress=lambda done, total, _: seen.append((done, total)), cancel=None)
        assert streaming.found("a") == sorted(streaming.found("a"))
        assert len(streaming.found("a")) == 4
        assert (streaming.found("b"), streaming.found("c")) == ([0], [])
        assert seen[-1] == (8 * ((1 << 22) + 10),) * 2

    def test_it_can_be_cancelled(self) -> None:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            Streaming([[pair("a", 1 << 22)]], _first).run("", workers=1, progress=None, cancel=cancel)

    def test_there_must_be_workers(self) -> None:
        with pytest.raises(UsageError, match="0 workers"):
            Streaming([[pair("a", 1)]], _first).run("", workers=0, progress=None, cancel=None)


def _first(pair: Pair, piece: Piece, left: Any, right: Any, buffers: Any) -> int:
    return int(left[0])
