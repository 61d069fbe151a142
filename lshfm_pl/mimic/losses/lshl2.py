"""The sum of the L2 and the LSH loss, the paper's method (arXiv 2011.01424)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lshfm_pl.mimic.losses.base import LossSum, require_number
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH

__all__ = ["LSHL2"]


class LSHL2(LossSum):
    """β · (w_l2 · MSE + w_lsh · LSH term). The paper has both weights 1 and one β for the sum.

    Args:
        num_features: D, as in `LSH`.
        num_hashes: H, as in `LSH`.
        beta: weight β of the sum.
        l2_weight: w_l2.
        lsh_weight: w_lsh.
        hash_settings: other arguments of `LSH`.
    """

    follows = LSH.follows
    settings_of = LSH

    def __init__(
        self,
        num_features: int | Sequence[int],
        num_hashes: int | None = None,
        *,
        beta: float = 1.0,
        l2_weight: float = 1.0,
        lsh_weight: float = 1.0,
        **hash_settings: Any,
    ) -> None:
        for key, value in (("beta", beta), ("l2_weight", l2_weight), ("lsh_weight", lsh_weight)):
            require_number(key, value)
        lsh = LSH(num_features, num_hashes, beta=beta * lsh_weight, **hash_settings)
        super().__init__({"l2": L2(beta * l2_weight, point=lsh.point), "lsh": lsh})

    @property
    def lsh(self) -> LSH:
        """The hash loss."""
        loss = self.losses["lsh"]
        assert isinstance(loss, LSH)
        return loss

    @property
    def weight(self) -> Tensor:
        """W [H, D] of the hash, if there is one width."""
        return self.lsh.weight

    @property
    def bias(self) -> Tensor:
        """b [H] of the hash, if there is one width."""
        return self.lsh.bias

    def load_hash(self, weights: Mapping[str, Any], source: str) -> None:
        """As `LSH.load_hash`."""
        self.lsh.load_hash(weights, source)
