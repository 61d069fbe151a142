"""Report on what was loaded from a file of weights, in total and for each tensor."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lshfm_pl.errors import first_few

__all__ = ["LoadReport", "LoadedTensor"]


@dataclass(frozen=True)
class LoadedTensor:
    """What happened to one tensor of a detector, or of a file.

    Attributes:
        name: name in the detector, or in the file if the detector lacks it.
        shape: shape of this tensor.
        how: `taken` completely, `rows taken` for some classes, `made anew` with random numbers, `left out`, or
            `kept` as it was before.
        name_in_file: "" if nothing was taken.
        told: details, such as the classes whose rows were taken; "" for none.
    """

    name: str
    shape: tuple[int, ...]
    how: Literal["taken", "rows taken", "made anew", "left out", "kept"]
    name_in_file: str = ""
    told: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` loaded, for the log and for comparison with the data."""

    #: The path, or "state dict" for one in memory.
    source: str
    #: The kind of file, for messages.
    format: str
    #: Number of tensors loaded, buffers included.
    num_tensors: int
    #: The names of labels 1, 2, … in the file; None if it has none.
    class_names: tuple[str, ...] | None = None
    #: The eps that the backbone's norms got; None if the detector's own was kept.
    norm_eps: float | None = None
    #: All tensors of the detector, then those of the file that were left out.
    tensors: tuple[LoadedTensor, ...] = ()
    #: Key → value in the file, for settings on which the weights depend and which the detector has otherwise.
    other_settings: Mapping[str, Any] = field(default_factory=dict)
    #: The data config of the run that wrote the file; None if it does not say.
    data: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        eps = "" if self.norm_eps is None else f", norm eps {self.norm_eps:g}"
        return f"{self.source}: {self.num_tensors} tensors loaded ({self.format}{eps}){self._changes()}"

    def _changes(self) -> str:
        """A text on what was not taken completely; "" for nothing."""
        by_rows = [tensor for tensor in self.tensors if tensor.how == "rows taken"]
        anew = [tensor for tensor in self.tensors if tensor.how == "made anew"]
        parts = (
            [f"rows of {by_rows[0].told} taken in {first_few((each.name for each in by_rows), 4)}"]
            if by_rows
            else []
        )
        parts += [f"made anew: {first_few((each.name for each in anew), 4)}"] if anew else []
        kept = [f"{tensor.name} ({tensor.told})" for tensor in self.tensors if tensor.how == "kept"]
        parts += [f"{len(kept)} not taken: {first_few(kept, 2)}"] if kept else []
        return "".join(f"; {part}" for part in parts)

    def table(self) -> str:
        """A CSV table with a row for each tensor: its name, shape, what happened to it, its name in the file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["tensor", "shape", "how", "name_in_file", "told"])
        for tensor in self.tensors:
            shape = "x".join(map(str, tensor.shape))
            writer.writerow([tensor.name, shape, tensor.how, tensor.name_in_file, tensor.told])
        return text.getvalue()
