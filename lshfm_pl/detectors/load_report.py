"""What was loaded from a file of weights, as a whole and tensor by tensor."""

import csv
import io
from dataclasses import dataclass
from typing import Literal

from lshfm_pl.errors import first_few

__all__ = ["LoadReport", "LoadedTensor"]


@dataclass(frozen=True)
class LoadedTensor:
    """What became of one tensor of a detector, or of a file.

    Attributes:
        name: of the detector's tensor; of the file's where the detector has none.
        shape: of the same.
        how: `taken` as it is, `rows taken` for some classes, `made anew` with random numbers, or `left out`.
        name_in_file: "" where nothing was taken.
        told: more about it, such as the classes whose rows were taken; "" for nothing.
    """

    name: str
    shape: tuple[int, ...]
    how: Literal["taken", "rows taken", "made anew", "left out"]
    name_in_file: str = ""
    told: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` loaded, for the log and for comparison with the data."""

    #: The path, or "state dict" for one handed over in memory.
    source: str
    #: What kind of file it was, in words.
    format: str
    #: Number of tensors loaded, buffers included.
    num_tensors: int
    #: The names of labels 1, 2, … that the file holds; None where it holds none.
    class_names: tuple[str, ...] | None = None
    #: The eps given to the backbone's norms, None where the detector's own was kept.
    norm_eps: float | None = None
    #: Every tensor of the detector, then those of the file that were left out.
    tensors: tuple[LoadedTensor, ...] = ()

    def __str__(self) -> str:
        eps = "" if self.norm_eps is None else f", norm eps {self.norm_eps:g}"
        return f"{self.source}: {self.num_tensors} tensors loaded ({self.format}{eps}){self._changes()}"

    def _changes(self) -> str:
        """What was not taken as it is, in words; "" for nothing."""
        by_rows = [tensor for tensor in self.tensors if tensor.how == "rows taken"]
        anew = [tensor for tensor in self.tensors if tensor.how == "made anew"]
        parts = (
            [f"rows of {by_rows[0].told} taken in {first_few((each.name for each in by_rows), 4)}"]
            if by_rows
            else []
        )
        parts += [f"made anew: {first_few((each.name for each in anew), 4)}"] if anew else []
        return "".join(f"; {part}" for part in parts)

    def table(self) -> str:
        """A CSV table with a row for each tensor: its name, shape, what became of it, its name in the file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["tensor", "shape", "how", "name_in_file", "told"])
        for tensor in self.tensors:
            shape = "x".join(map(str, tensor.shape))
            writer.writerow([tensor.name, shape, tensor.how, tensor.name_in_file, tensor.told])
        return text.getvalue()
