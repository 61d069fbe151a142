"""Mimic losses with the settings of the golden values."""

from lshfm_pl.mimic import L2, LSH, LSHL2

BETA = 7.0


def make_head(loss, weight, beta=BETA):
    name, _, hash_loss = loss.partition("_")
    if name == "l2":
        return L2(beta=beta)
    head = {"lsh": LSH, "lshl2": LSHL2}[name](weight.shape[1], beta=beta, num_hashes=4, hash_loss=hash_loss)
    head.load_hash({"weight": weight}, "golden")
    return head
