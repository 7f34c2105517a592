"""What the workers count, and what they notice about the values that they write."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dcptools.dtypes import DType
from dcptools.shards import ShardFile
from dcptools.tensors import Bits
from dcptools.writer.cast import nan_in


@dataclass(frozen=True)
class Noticed:
    """What the values of one output showed."""

    overflows: int = 0  # finite values that became Inf in the cast
    all_nan: bool = False  # whether there are values, and every one is NaN


@dataclass
class Tally:
    """What the workers counted."""

    done: int = 0  # bytes written
    current: str = ""  # the output that was written last
    overflows: Counter[str] = field(default_factory=Counter)  # by output name: values that became Inf
    noticed: dict[str, Noticed] = field(default_factory=dict)  # by output name, of files that are finished
    # Names of outputs of which values were NaN, and of those of which one was not. They only grow, so that several
    # threads can look at an output.
    _nan: set[str] = field(default_factory=set)
    _numbers: set[str] = field(default_factory=set)

    def look(self, name: str, values: Bits, dtype: DType) -> None:
        """Look at values of an output: only at the first, unless all that were seen, this one too, are NaN."""
        if name in self._numbers:
            return
        if nan_in(values.item(0), dtype) and nan_in(values, dtype).all():
            self._nan.add(name)
        else:
            self._numbers.add(name)

    def finish(self, file: ShardFile) -> dict[str, Noticed]:
        """What was noticed about the outputs of a complete file; for most there is nothing."""
        names = [tensor.output.name for tensor in file.tensors]
        nan = self._nan.difference(self._numbers)
        odd = (name for name in names if name in nan or name in self.overflows)
        noticed = {name: Noticed(self.overflows[name], name in nan) for name in odd}
        self.noticed.update(noticed)
        return noticed
