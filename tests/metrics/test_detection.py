import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_reference import pycocotools_figures
from torch import distributed, multiprocessing

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import DetectionMetrics, voc_average_precision
from lshfm_pl.metrics.detection import COCO_BACKENDS

COCO_CASES = (
    "bccd_base",
    "bccd_no_difficult",
    "bccd_score_ties",
    "bccd_class_without_detections",
    "bccd_class_all_difficult",
    "cartucho",
)
COCO_MEANS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
OF_A_SIZE = ("APs", "APm", "APl", "ARs", "ARm", "ARl")
MEANS = (*COCO_MEANS, "voc07_mAP", "voc_mAP")
both_backends = pytest.mark.parametrize("backend", COCO_BACKENDS)


@both_backends
@pytest.mark.parametrize("name", COCO_CASES)
def test_coco_figures_are_those_with_difficult_objects_dropped(load_case, name, backend):
    case = load_case(name)
    names = class_names(case.num_classes)
    predictions, targets = case.predictions(only_known_labels=True), case.targets(clipped=True)

    figures = compute(names, predictions, targets, backend)

    assert [figures[key] for key in ("AP", "AP50", "AP75")] == pytest.approx(100 * case["coco"], abs=1e-6)
    for column, figure in enumerate(("AP", "AP50")):
        found = [figures[f"{figure}/{name}"] for name in names]
        assert found == pytest.approx(100 * case["coco_per_class"][:, column], abs=1e-6, nan_ok=True)
    means, per_class = pycocotools_figures(case.num_classes, predictions, targets)
    assert [figures[key] for key in COCO_MEANS] == pytest.approx(means, abs=1e-7, nan_ok=True)
    assert [figures[f"AP/{name}"] for name in names] == pytest.approx(per_class, abs=1e-6, nan_ok=True)


@both_backends
def test_recall_of_exactly_three_fifths_reaches_the_point(backend):
    """Recall points rounded to float32 would give another AP here."""
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]]
    )
    targets = [make_target(0, boxes, [1] * 5)]
    wrong = torch.tensor([[0.0, 50, 10, 60]])
    predictions = [
        make_prediction(torch.cat([boxes[:3], wrong, boxes[3:]]), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1] * 6)
    ]
    figures = compute(["a"], predictions, targets, backend)
    means, _ = pycocotools_figures(1, predictions, targets)
    assert [figures[key] for key in COCO_MEANS] == pytest.approx(means, abs=1e-7, nan_ok=True)
    # 61 points (0 .. 0.60) at precision 1, the 40 above at 5/6.
    assert figures["AP"] == pytest.approx(100 * (61 + 40 * 5 / 6) / 101, abs=1e-6)


@both_backends
def test_iou_of_exactly_eleven_twentieths_reaches_the_threshold(backend):
    """IoU thresholds rounded to float32 would give another AP here."""
    targets = [make_target(0, torch.tensor([[0.0, 0, 20, 10]]), [1])]
    predictions = [make_prediction(torch.tensor([[0.0, 0, 11, 10]]), [0.9], [1])]
    assert compute(["a"], predictions, targets, backend)["AP"] == pytest.approx(20.0)
    assert pycocotools_figures(1, predictions, targets)[0][0] == pytest.approx(20.0)


@pytest.mark.parametrize("name", COCO_CASES)
def test_voc_figures_ignore_difficult_objects(load_case, name):
    case = load_case(name)
    names = class_names(case.num_classes)
    predictions, targets = case.predictions(only_known_labels=True), case.targets()
    figures = compute(names, predictions, targets)

    has_objects = [
        ((case["true_label"] == label) & ~case["true_difficult"]).any() for label in range(1, len(names) + 1)
    ]
    for prefix, method in {"voc07": "voc07", "voc": "area"}.items():
        if name == "bccd_score_ties":  # the reference's order of ties isn't that of the images
            ap = voc_average_precision(predictions, targets, method=method)
            reference = np.array([ap[label] for label in (1, 2, 3)])
        else:
            reference = case[f"{prefix}_ap"][0]
        expected = np.where(has_objects, 100 * reference, np.nan)
        assert [figures[f"{prefix}_AP/{name}"] for name in names] == pytest.approx(
            expected, abs=1e-6, nan_ok=True
        )
        assert figures[f"{prefix}_mAP"] == pytest.approx(np.nanmean(expected), abs=1e-6)


@both_backends
def test_a_class_with_difficult_ground_truth_only_is_left_out_of_the_means(backend):
    box = torch.tensor([[0.0, 0, 10, 10]])
    targets = [make_target(0, box.repeat(2, 1), [1, 2], difficult=[False, True])]
    predictions = [make_prediction(box.repeat(2, 1), [0.9, 0.8], [1, 2])]
    figures = compute(["a", "b", "c"], predictions, targets, backend)
    for key in MEANS:
        # 10 × 10 pixels are small.
        expected = math.nan if key in ("APm", "APl", "ARm", "ARl") else 100.0
        assert figures[key] == pytest.approx(expected, nan_ok=True)
    for name in ("b", "c"):
        for figure in ("AP", "AP50", "voc07_AP", "voc_AP"):
            assert math.isnan(figures[f"{figure}/{name}"])


@both_backends
def test_without_predictions_figures_are_zero(backend):
    targets = [make_target(0, torch.tensor([[0.0, 0, 10, 10]]), [1])]
    figures = compute(["a", "b"], [make_prediction(torch.zeros(0, 4), [], [])], targets, backend)
    for key in MEANS:
        expected = math.nan if key in ("APm", "APl", "ARm", "ARl") else 0.0
        assert figures[key] == pytest.approx(expected, nan_ok=True)
    assert figures["AP/a"] == figures["voc_AP/a"] == 0.0
    assert math.isnan(figures["AP/b"])


@both_backends
@pytest.mark.parametrize("num_predictions", [0, 2])
def test_without_ground_truth_means_are_zero_and_classes_nan(backend, num_predictions):
    predictions = [make_prediction(torch.tensor([[0.0, 0, 9, 9]]), [0.9], [1])] * num_predictions
    targets = [make_target(index, torch.zeros(0, 4), []) for index in range(num_predictions)]
    figures = compute(["a"], predictions, targets, backend)
    for key in MEANS:
        assert figures[key] == pytest.approx(math.nan if key in OF_A_SIZE else 0.0, nan_ok=True)
    assert all(math.isnan(value) for key, value in figures.items() if "/" in key)
    assert len(figures) == len(MEANS) + 4


def test_reset_forgets_and_batches_add_up(load_case):
    case = load_case("bccd_base")
    predictions, targets = case.predictions(), case.targets()
    metrics = DetectionMetrics(class_names(3))
    metrics.update(predictions[::-1], targets[::-1])
    whole = metrics.compute()
    metrics.reset()
    assert metrics.compute()["AP"] == 0.0
    for start in range(0, len(targets), 7):
        metrics.update(predictions[start : start + 7], targets[start : start + 7])
    assert metrics.compute() == whole
    assert list(whole)[: len(MEANS)] == list(MEANS)


def test_an_image_seen_twice_counts_once(load_case):
    case = load_case("bccd_base")
    predictions, targets = case.predictions(), case.targets()
    once = compute(class_names(3), predictions, targets)
    assert compute(class_names(3), predictions + predictions[:9], targets + targets[:9]) == once


def test_later_changes_of_the_given_tensors_have_no_effect():
    prediction = make_prediction(torch.tensor([[0.0, 0, 10, 10]]), [0.9], [1])
    target = make_target(0, torch.tensor([[0.0, 0, 10, 10]]), [1])
    metrics = DetectionMetrics(["a"])
    metrics.update([prediction], [target])
    prediction["boxes"].add_(100)
    assert metrics.compute()["AP"] == pytest.approx(100.0)


def evaluate_share_of_rank(rank: int, folder: str) -> None:
    folder = Path(folder)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'init'}", rank=rank, world_size=2)
    try:
        data = torch.load(folder / "data.pt")
        share = range(50) if rank == 0 else range(49, 72)  # both processes evaluate image 49
        metrics = DetectionMetrics(class_names(3))
        for index in reversed(share):
            metrics.update([data["predictions"][index]], [data["targets"][index]])
        torch.save(metrics.compute(), folder / f"figures_{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_two_processes_give_the_figures_of_one(load_case, tmp_path):
    case = load_case("bccd_score_ties")
    predictions, targets = case.predictions(), case.targets()
    torch.save({"predictions": predictions, "targets": targets}, tmp_path / "data.pt")
    multiprocessing.spawn(evaluate_share_of_rank, args=(str(tmp_path),), nprocs=2)
    expected = compute(class_names(3), predictions, targets)
    for rank in range(2):
        assert torch.load(tmp_path / f"figures_{rank}.pt") == expected


@both_backends
@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_or_logged_or_warned_of(backend, capfd, caplog):
    box = torch.tensor([[0.0, 0, 20, 10]])
    predictions = [make_prediction(box.repeat(120, 1), [0.5] * 120, [1] * 120)]
    with caplog.at_level(logging.INFO):
        compute(["a"], predictions, [make_target(0, box, [1])], backend)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("predicted", "true", "refused"), [([3], [], 3), ([-1], [], -1), ([], [0], 0), ([], [3], 3)]
)
def test_labels_outside_the_classes_are_refused(predicted, true, refused):
    metrics = DetectionMetrics(["a", "b"])
    box = torch.tensor([[0.0, 0, 1, 1]])
    prediction = make_prediction(box[: len(predicted)], [0.5] * len(predicted), predicted)
    target = make_target(7, box[: len(true)], true)
    with pytest.raises(LSHFMError, match=rf"image 7: expected labels 1\.\.2 .* found {refused}"):
        metrics.update([prediction], [target])


def test_predictions_of_the_background_are_left_out():
    box = torch.tensor([[0.0, 0, 10, 10]])
    targets = [make_target(0, box, [1])]
    without = compute(["a"], [make_prediction(box, [0.5], [1])], targets)
    predictions = [make_prediction(box.repeat(2, 1), [0.9, 0.5], [0, 1])]
    assert compute(["a"], predictions, targets) == pytest.approx(without, nan_ok=True)
    assert without["AP"] == pytest.approx(100.0)


# COCO: crowds, sizes, sparse labels


@both_backends
@pytest.mark.parametrize("labels", [(1, 2, 3), (1, 3, 18)], ids=["contiguous", "keep"])
@pytest.mark.parametrize("seed", range(3))
def test_all_figures_of_a_coco_set_are_those_of_cocoeval(seed, labels, backend):
    """Crowds, all sizes, areas other than the box's, empty images, > 100 detections, classes without objects."""
    num_classes = max(labels) + 1
    predictions, targets = drawn_coco_set(seed, labels, absent_label=num_classes)
    figures = compute(class_names(num_classes), predictions, targets, backend)
    means, per_class = pycocotools_figures(num_classes, predictions, targets)
    assert not any(map(math.isnan, means))
    assert len({round(mean, 6) for mean in means}) == 12
    assert [figures[key] for key in COCO_MEANS] == pytest.approx(means, abs=1e-7)
    found = [figures[f"AP/{name}"] for name in class_names(num_classes)]
    assert found == pytest.approx(per_class, abs=1e-7, nan_ok=True)
    assert [label for label in range(1, num_classes + 1) if not math.isnan(found[label - 1])] == list(labels)


@both_backends
def test_sizes_are_by_the_given_area(backend):
    box = torch.tensor([[0.0, 0, 200, 200]])
    prediction = make_prediction(box, [0.9], [1])
    for area, present in ((0.0, "s"), (32.0**2, "sm"), (96.0**2, "ml"), (40000.0, "l")):
        target = {**make_target(0, box, [1]), "area": torch.tensor([area])}
        figures = compute(["a"], [prediction], [target], backend)
        assert [size for size in "sml" if not math.isnan(figures["AP" + size])] == list(present)
    assert math.isnan(compute(["a"], [prediction], [make_target(0, box, [1])], backend)["APs"])


@both_backends
def test_detections_inside_a_crowd_count_neither_way(backend):
    crowd, alone = [0.0, 0, 100, 100], [200.0, 0, 240, 40]
    inside = [[0.0, 0, 30, 30], [40.0, 0, 70, 30], crowd]
    target = make_target(0, torch.tensor([crowd, alone]), [1, 1])
    predictions = [make_prediction(torch.tensor([*inside, alone]), [0.9, 0.8, 0.7, 0.6], [1] * 4)]
    flagged = {**target, "crowd": torch.tensor([True, False])}
    assert compute(["a"], predictions, [flagged], backend)["AP"] == pytest.approx(100.0)
    assert compute(["a"], predictions, [target], backend)["AP"] < 60


def test_voc_figures_ignore_crowds_as_they_do_difficult_objects():
    predictions, targets = drawn_coco_set(0, (1, 2, 3), absent_label=4)
    figures = compute(class_names(4), predictions, targets)
    ignored = [
        {"boxes": target["boxes"], "labels": target["labels"], "difficult": target["crowd"]}
        for target in targets
    ]
    assert any(target["difficult"].any() for target in ignored)
    for prefix, method in (("voc07", "voc07"), ("voc", "area")):
        expected = voc_average_precision(predictions, ignored, method=method)
        found = {label: figures[f"{prefix}_AP/class {label}"] for label in (1, 2, 3)}
        assert found == pytest.approx({label: 100 * expected[label] for label in found}, abs=1e-9)


@pytest.mark.parametrize(("key", "value"), [("crowd", torch.zeros(2)), ("area", [1.0])])
def test_a_crowd_or_area_that_does_not_fit_is_refused(key, value):
    target = {**make_target(7, torch.tensor([[0.0, 0, 9, 9]]), [1]), key: value}
    with pytest.raises(LSHFMError, match=rf"targets\[0\]\['{key}'\]"):
        DetectionMetrics(["a"]).update([make_prediction(torch.zeros(0, 4), [], [])], [target])


def test_a_target_without_image_id_is_refused():
    target = make_target(7, torch.zeros(0, 4), [])
    del target["image_id"]
    with pytest.raises(LSHFMError, match=r"targets\[0\].*'image_id'"):
        DetectionMetrics(["a"]).update([make_prediction(torch.zeros(0, 4), [], [])], [target])


def test_unusable_settings_are_refused():
    with pytest.raises(LSHFMError, match="arrays, faster_coco_eval, pycocotools, found 'coco'"):
        DetectionMetrics(["a"], backend="coco")
    with pytest.raises(LSHFMError, match="different names"):
        DetectionMetrics(["a", "a"])


def class_names(count: int) -> list[str]:
    return [f"class {label}" for label in range(1, count + 1)]


def compute(names, predictions, targets, backend="arrays") -> dict[str, float]:
    metrics = DetectionMetrics(names, backend=backend)
    metrics.update(predictions, targets)
    return metrics.compute()


def make_prediction(boxes, scores, labels) -> dict[str, torch.Tensor]:
    return {
        "boxes": boxes.clone(),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def make_target(image_id, boxes, labels, difficult=None) -> dict[str, torch.Tensor]:
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "difficult": torch.tensor(difficult or [False] * len(labels), dtype=torch.bool),
        "image_id": torch.tensor([image_id]),
    }


def drawn_coco_set(seed, labels, absent_label):
    """Objects of all sizes, a fifth of them crowds; detections near them, and of a class without any."""
    random = np.random.RandomState(seed)
    predictions, targets = [], []
    for image_id in range(25):
        count = 0 if image_id % 6 == 5 else random.randint(1, 9)
        boxes = random_boxes(random, count)
        truth = make_target(image_id, boxes, random.choice(labels, count).tolist())
        sides = boxes[:, 2:] - boxes[:, :2]
        truth["area"] = sides.prod(dim=1) * torch.from_numpy(random.uniform(0.3, 1, count))
        truth["crowd"] = torch.from_numpy(random.uniform(size=count) < 0.2)
        targets.append(truth)
        near = (
            torch.from_numpy(random.choice(count, 2 * count)) if count else torch.zeros(0, dtype=torch.int64)
        )
        jitter = torch.from_numpy(random.normal(0, 0.05, (len(near), 4))) * sides[near].repeat(1, 2)
        stray = random_boxes(random, 350 if image_id == 3 else 6)
        predictions.append(
            make_prediction(
                torch.cat([boxes[near] + jitter, stray]),
                # With two digits there are ties.
                random.uniform(size=len(near) + len(stray)).round(2).tolist(),
                [
                    *truth["labels"][near].tolist(),
                    *random.choice(
                        [labels[0]] if image_id == 3 else [*labels, absent_label], len(stray)
                    ).tolist(),
                ],
            )
        )
    return predictions, targets


def random_boxes(random, count) -> torch.Tensor:
    corners = random.uniform(0, 300, (count, 2))
    return torch.from_numpy(
        np.concatenate([corners, corners + np.exp(random.uniform(2, 5.5, (count, 2)))], 1)
    )
