"""The settings of a run, and how they differ from those of another run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.inputs import OF_ALL_LOSSES
from lshfm_pl.errors import LSHFMError, printable
from lshfm_pl.renamed import current_path
from lshfm_pl.runs.augmentation import PUBLISHED, describe_augmentation
from lshfm_pl.runs.reading import read_yaml

__all__ = [
    "MEANT_BEFORE",
    "STOPPING",
    "WITHOUT_EFFECT",
    "changed_settings",
    "comparable",
    "data_root_in",
    "differing_keys",
    "is_known_data",
    "saved_config",
    "training_settings",
]


WITHOUT_EFFECT = (
    "callbacks", "compile", "data.download", "data.num_workers", "data.root", "data.start_method", "debug",
    "kd_of_architecture", "logger", "lr_of_architecture", "output_dir", "quickstart_anchors", "resume",
    "resume_allow_changes", "trainer.compile", "trainer.cuda_graphs", "trainer.default_root_dir",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.log_every_n_steps",
    "trainer.max_time", "trainer.meeting_seconds", "trainer.reach_seconds", "trainer.profiler",
)  # fmt: skip
"""Keys and groups that do not change what is learned, so that they may differ when a run is resumed.

In the configs of older runs, `compile` is `trainer.compile`, and `…_of_architecture` and `quickstart_anchors` are
tables, whose effect is in `schedule.lr`, `distill` and `model.anchor_sizes`.
"""

MEANT_BEFORE: dict[str, tuple[Any, ...]] = {
    "augment": (PUBLISHED,),
    "data.first_pixel": (1,),
    "data.train_labels": ("annotations",),
    "schedule.backbone_lr_factor": (1.0,),
    "schedule.layer_decay": (1.0,),
    "model.match_classes": ("by_name",),
    "model.which": ("student",),
    "distill.balance": ("fixed",),
    "distill.pseudo_labels.soft": (True,),
    "distill.bias_even_median": ("mean", "lower"),
    "kernels.winograd": (True,),
    "kernels.folded_norms": (True,),
    "kernels.fused_hash_loss": (True,),
    "kernels.hash": ("auto", "plain"),
    "kernels.memory": (True,),
    "distill._target_": tuple(
        f"lshfm_pl.mimic.losses.{path}" for path in ("kd.KD", "l2.L2", "lsh.LSH", "lshl2.LSHL2")
    ),
}
"""Keys that older runs lack → the values that change nothing for them. A hash bias is stored in the checkpoint, and
older runs named these losses by `distill.name` only."""

TEACHER_FILE = "teacher.checkpoint"

STOPPING = "early_stopping"
"""The callback that ends a training early, the only one that changes what is learned."""

TRAINER_SETTINGS = (
    "precision",
    "accumulate_grad_batches",
    "max_steps",
    "max_time",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_test_batches",
    "overfit_batches",
)
"""Keys of `trainer` that may change the metrics."""

KNOWN_DATA = ("VOC2007/", "VOC2012/", "instances_train2017", "ShapesDataModule")
"""Parts of `data` configs of well-known data sets, which are the same in every folder. Any other data set is
identified by its folder."""

OF_ONE_TERM = re.compile(r"^distill\.terms\.[^.]+\.")
"""Start of the keys of one loss in a sum."""

_LONGEST_REASON = 200
"""Characters of another library's message that are shown."""


def is_known_data(data: Mapping[str, Any]) -> bool:
    """Whether a `data` config names a data set that is the same in every folder."""
    kept = json.dumps({key: value for key, value in data.items() if key != "root"})
    return any(name in kept for name in KNOWN_DATA)


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved config that may change a run's metrics, besides data, loss and seed."""
    stopping = (config.get("callbacks") or {}).get(STOPPING)
    return {
        "model": config.get("model"),
        "schedule": config.get("schedule"),
        "trainer": {key: (config.get("trainer") or {}).get(key) for key in TRAINER_SETTINGS},
        **({STOPPING: stopping} if stopping else {}),
        "augment": describe_augmentation(config),
    }


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The config of the run in `folder`; None if there is no config.yaml.

    Raises:
        LSHFMError: the file is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    return _read_config(path)


def data_root_in(saved: Mapping[str, Any]) -> str | None:
    """The data folder in a run's config; None if there is none."""
    data = saved.get("data")
    return str(data["root"]) if isinstance(data, Mapping) and data.get("root") else None


def _read_config(path: Path) -> dict[str, Any]:
    """Read the config in a run's folder."""
    try:
        read_yaml(path, path.parent)  # checks limits of size and depth, which OmegaConf does not have
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (LSHFMError, OmegaConfBaseException, OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = printable(str(error).removeprefix(f"{path}: "))[:_LONGEST_REASON]
        raise LSHFMError(f"resume: {path} cannot be read ({reason}); give another hydra.run.dir") from error
    if not isinstance(content, dict) or not content:
        raise LSHFMError(f"resume: {path} holds no settings; give another hydra.run.dir")
    return {str(key): value for key, value in content.items()}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what is learned, with dotted keys: `{"schedule.lr": 0.01, …}`.

    The rule for weights that follow from gradients is left out where weights are fixed, and the share of unlabelled
    pictures where there are none. Of these only their presence counts, so that they may be moved. The augmentation
    is one text, as the order of its transforms matters.
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if prefix == "callbacks" and isinstance(value, Mapping) and STOPPING in value:
            walk(f"callbacks.{STOPPING}", value[STOPPING])
        if prefix in WITHOUT_EFFECT:
            return
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = current_path(value) if prefix.endswith("_target_") else value

    walk("", {key: value for key, value in config.items() if key != "augment"})
    if "augment" in config:
        flat["augment"] = describe_augmentation(config)
    if flat.get("auto_batch_size"):
        flat.pop("data.batch_size", None)  # where the search began, or what it found
    if "data.unlabelled" in flat:
        flat["data.unlabelled"] = bool(flat["data.unlabelled"])  # the pictures themselves are compared
    if not flat.get("data.unlabelled"):
        flat.pop("data.unlabelled_share", None)
    if flat.get("distill.pseudo_labels.score") is None:
        flat = {key: value for key, value in flat.items() if ".pseudo_labels." not in key}
    flat = _with_own_balance(flat)
    if "share" not in (value for key, value in flat.items() if key.endswith(".balance")):
        flat = {key: value for key, value in flat.items() if not key.startswith("distill.balance_rule.")}
    return flat


def _with_own_balance(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, in which a choice of weights for all losses of a sum is a setting of each of them.

    What has no effect there, because it is a setting of all losses, is left out.
    """
    lost = tuple(f"distill.{key}" for key in OF_ALL_LOSSES)
    terms = {key: OF_ONE_TERM.sub("distill.", key) for key in flat if OF_ONE_TERM.match(key)}
    flat = {key: value for key, value in flat.items() if not terms.get(key, "").startswith(lost)}
    own = [key for key, of_loss in terms.items() if of_loss == "distill.balance"]
    overall = flat.get("distill.balance")
    if not own:
        return dict(flat)
    others = {key: value for key, value in flat.items() if key != "distill.balance"}
    return others | ({} if overall is None else dict.fromkeys(own, overall))


def changed_settings(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`key: saved → wanted` for each setting of a run's config that changes what is learned and differs.

    A teacher in the folder that also holds the run's folder may be moved together with it, like a whole comparison.
    """
    before, now = comparable(saved), comparable(wanted)
    places = [_teacher_beside_run(config) for config in (saved, wanted)]
    if places[0] is not None and places[0] == places[1]:
        now[TEACHER_FILE] = before[TEACHER_FILE]
    return differing_keys(before, now)


def _teacher_beside_run(config: Mapping[str, Any]) -> str | None:
    """The teacher's file as a path in the folder that holds the run's folder; None if it is elsewhere."""
    teacher, run = config.get("teacher"), config.get("output_dir")
    checkpoint = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
    if not isinstance(checkpoint, str) or not isinstance(run, str):
        return None
    path, folder = Path(checkpoint).expanduser().resolve(), Path(run).expanduser().resolve().parent
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def differing_keys(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`key: saved → wanted` for each key that differs between two results of `comparable`.

    If a key is missing on one side, the other side is of another version of this project. Then the values null,
    false and empty, and those in `MEANT_BEFORE`, have no effect and count as equal.
    """
    absent = "absent"

    def has_no_effect(key: str) -> bool:
        if key in saved and key in wanted:
            return False
        value = saved[key] if key in saved else wanted[key]
        known = OF_ONE_TERM.sub("distill.", key)
        return value in MEANT_BEFORE[known] if known in MEANT_BEFORE else not value

    return [
        f"{key}: {saved.get(key, absent)} → {wanted.get(key, absent)}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key, absent) != wanted.get(key, absent) and not has_no_effect(key)
    ]
