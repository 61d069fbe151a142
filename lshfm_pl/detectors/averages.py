"""Which weights of a run that averages them a checkpoint holds, and which of them are taken."""

from collections.abc import Mapping
from typing import Any

from lshfm_pl.errors import LSHFMError

__all__ = ["AVERAGED", "EMA_KEY", "RAW", "WEIGHTS_KEY", "choose_average"]

#: Names of the weights of a run that averages them: those of the optimizer, and their moving average.
RAW, AVERAGED = "raw", "ema"
#: Key of a complete checkpoint: the average, with `state_dict` (names of the detector) and `better` (raw or ema).
EMA_KEY = "ema"
#: Key of a checkpoint with weights only: which of the two it holds. Without averaging it has no such key.
WEIGHTS_KEY = "weights"
_TITLES = {RAW: "weights without averaging", AVERAGED: "averaged weights (EMA)"}


def choose_average(name: str, weights: Any, content: Mapping[str, Any], which: str) -> tuple[Any, str, str]:
    """The weights of a run, or their average: the better ones, or those that `which` names.

    Returns:
        The weights; the kind of file for messages; and `Contents.others`.

    Raises:
        LSHFMError: the average in the file is damaged, or `which` is neither of the two.
    """
    kind = "Lightning checkpoint"
    average = content.get(EMA_KEY)
    if average is None:
        title = _TITLES.get(str(content.get(WEIGHTS_KEY)))
        return weights, kind if title is None else f"{kind}, {title}", ""
    if not (isinstance(average, Mapping) and average.get("better") in _TITLES and "state_dict" in average):
        raise LSHFMError(f"{name}: its average of the weights (entry {EMA_KEY}) is damaged.")
    others = f"The file holds {RAW} and {AVERAGED}"
    chosen = average["better"] if which == "student" else which
    if chosen not in _TITLES:
        raise LSHFMError(f"{name}: {others}; expected which={RAW} or which={AVERAGED}, found {which}.")
    (other,) = _TITLES.keys() - {chosen}
    kind = f"{kind}, {_TITLES[chosen]}; the file has the others too: which={other}"
    return average["state_dict"] if chosen == AVERAGED else weights, kind, others
