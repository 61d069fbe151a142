"""Types of the values of config keys, as far as they are known without the code that uses them.

A key with a default in `conf/` takes values of the default's type. This module lists the keys whose default is null
or not informative. `lshfm_pl.cli.ranges` lists the valid numbers and texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["KINDS", "Kind", "kind_of", "kind_of_default"]


@dataclass(frozen=True)
class Kind:
    """The values that a key accepts.

    Args:
        of: Python types; `float` includes whole numbers.
        is_null: whether null is accepted.
        is_list: whether a list of such values is accepted.
        is_single: whether a single value outside of a list is accepted.
        is_path: whether the values are files or folders, in which `~` is the user's home.
    """

    of: tuple[type, ...]
    is_null: bool = True
    is_list: bool = False
    is_single: bool = True
    is_path: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the typed text is used literally."""
        return self.of == (str,)

    def holds(self, value: Any) -> bool:
        """Whether a value is accepted."""
        if value is None:
            return self.is_null
        if isinstance(value, Sequence) and not isinstance(value, str) and self.is_list:
            items = replace(self, is_null=False, is_single=True)
            return all(items.holds(item) for item in value)
        if not self.is_single:
            return False
        if isinstance(value, bool):
            return bool in self.of
        if isinstance(value, int):
            return int in self.of or float in self.of
        return isinstance(value, self.of)

    def words(self, *, is_null: bool = True) -> str:
        """A description for messages. With `is_null=False`, null is not mentioned."""
        one = "a path" if self.is_path else " or ".join(WORDS[kind] for kind in self.of)
        if not self.is_single:
            return f"a list such as [{'a,b' if self.is_text else '1,2'}]"
        many = " or a list of them" if self.is_list else ""
        return f"{one}{many}{' or null' if is_null and self.is_null and dict not in self.of else ''}"


WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "settings",
}

PATH = Kind((str,), is_path=True)
PATHS = Kind((str,), is_list=True, is_path=True)
TEXT = Kind((str,))
TEXTS = Kind((str,), is_list=True)
WHOLE = Kind((int,))
NUMBER = Kind((float,))
SWITCH = Kind((bool,))
SETTINGS = Kind((dict,))
ANY_LIST = Kind((list,), is_null=False)

KINDS = {
    # By the last part of the key
    "annotations": PATH,
    "ap_loss": NUMBER,
    "backbone_weights": PATH,
    "box_head_width": WHOLE,
    "candidates": WHOLE,
    "checkpoint": PATH,
    "checkpoints": Kind((str, dict), is_list=True, is_path=True),
    "class_names": Kind((str,), is_list=True, is_single=False),
    "clip_grad_norm": NUMBER,
    "default_root_dir": PATH,
    "detections_per_img": WHOLE,
    "decay_from": NUMBER,
    "detector": Kind((dict, str)),
    "device": TEXT,
    "dirpath": PATH,
    "dst": PATH,
    "ema_decay": NUMBER,
    "epochs": WHOLE,
    "every_n_minutes": NUMBER,
    "every_n_steps": WHOLE,
    "experiment": TEXT,
    "file": PATH,
    "fix": PATH,
    "folder": PATH,
    "fpn_channels": WHOLE,
    "fpn_norm": TEXT,
    "fpn_strides": Kind((int,), is_list=True, is_single=False),
    "hash_weights": PATH,
    "hashes_per_step": WHOLE,
    "image_height": WHOLE,
    "image_id": TEXTS,
    "image_size": WHOLE,
    "image_width": WHOLE,
    "images": PATHS,
    "index": Kind((int,), is_list=True),
    "inherit": TEXTS,
    "jobs": WHOLE,
    "least_score": NUMBER,
    "levels": WHOLE,
    "limit": WHOLE,
    "losses": Kind((str, dict), is_null=False, is_list=True),
    "models": Kind((str, dict), is_list=True, is_path=True),
    "nms_thresh": NUMBER,
    "num_hashes": WHOLE,
    "output": PATH,
    "output_dir": PATH,
    "pixels": NUMBER,
    "point": TEXT,
    "postprocess": TEXT,
    "random": WHOLE,
    "reference_size": Kind((int,), is_list=True, is_single=False),
    "resume": PATH,
    "root": PATH,
    "runs": PATHS,
    "save_dir": PATH,
    "score_slack": NUMBER,
    "score_thresh": NUMBER,
    "share": NUMBER,
    "seeds": Kind((int,), is_null=False, is_list=True),
    "split": TEXT,
    "src": PATH,
    "start_method": TEXT,
    "std": NUMBER,
    "test_annotations": PATH,
    "test_images": PATH,
    "test_split": TEXTS,
    "threads": WHOLE,
    "train_annotations": PATH,
    "train_images": PATH,
    "train_split": TEXTS,
    "unlabelled": PATHS,
    "until": NUMBER,
    "val_annotations": PATH,
    "val_images": PATH,
    "val_split": TEXTS,
    "weights": TEXT,
    # By the whole key
    "hydra.run.dir": replace(PATH, is_null=False),
    "hydra.sweep.dir": replace(PATH, is_null=False),
    "callbacks.images": SETTINGS,
    "check.images": replace(WHOLE, is_null=False),
    "check.score": NUMBER,
    "check.unpaired": NUMBER,
    "fit.schedule.detector": TEXTS,
    "int8.images": replace(WHOLE, is_null=False),
    "data.image_size": Kind((int,), is_null=False),
    "data.split": TEXT,
    "distill.pseudo_labels.classes": SETTINGS,
    "distill.pseudo_labels.score": NUMBER,
    "model.weights": PATH,
    "student.model.weights": PATH,
    "teacher.model.weights": PATH,
    "schedule.epochs": Kind((int,), is_null=False),
    "distill.bias": Kind((int, str), is_null=False),
    "trainer.benchmark": SWITCH,
    "trainer.check_val_every_n_epoch": WHOLE,
    "trainer.deterministic": Kind((bool, str)),
    "trainer.devices": Kind((int, str), is_null=False, is_list=True),
    "trainer.enable_progress_bar": SWITCH,
    "trainer.fast_dev_run": Kind((bool, int), is_null=False),
    "trainer.gradient_clip_val": NUMBER,
    "trainer.limit_test_batches": NUMBER,
    "trainer.limit_train_batches": NUMBER,
    "trainer.limit_val_batches": NUMBER,
    "trainer.max_epochs": WHOLE,
    "trainer.max_time": Kind((str, dict)),
    "trainer.precision": Kind((int, str)),
    "trainer.profiler": Kind((str, dict)),
    "trainer.strategy": Kind((str, dict), is_null=False),
    "trainer.val_check_interval": NUMBER,
}
"""Key, or its last part → its kind."""


def kind_of(key: str) -> Kind | None:
    """The listed kind of a key; None if it is not listed."""
    return KINDS.get(key) or KINDS.get(key.rpartition(".")[2])


def kind_of_default(value: Any) -> Kind | None:
    """The kind of a key from its default in `conf/`; None for null, which says nothing."""
    if value is None:
        return None
    if isinstance(value, str):
        return Kind((str, bool, float))
    if isinstance(value, Mapping):
        return SETTINGS
    if isinstance(value, Sequence):
        whole = bool(value) and all(type(item) is int for item in value)
        return replace(WHOLE, is_null=False, is_list=True, is_single=False) if whole else ANY_LIST
    return Kind((type(value),), is_null=False)
