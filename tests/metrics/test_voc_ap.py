import math

import numpy as np
import pytest
import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import voc_average_precision
from lshfm_pl.metrics.voc_ap import (
    NO_MATCH,
    match_to_ground_truth,
    precision_recall_per_label,
    voc_precision_recall,
)

CASES_WITHOUT_TIES = (
    "bccd_base",
    "bccd_no_difficult",
    "bccd_class_without_detections",
    "bccd_class_all_difficult",
    "edge_cases",
    "cartucho",
)
METHOD_PREFIX = {"voc07": "voc07", "area": "voc"}
both_methods = pytest.mark.parametrize("method", METHOD_PREFIX)
both_thresholds = pytest.mark.parametrize(("row", "iou_threshold"), [(0, 0.5), (1, 0.75)])


@both_methods
@both_thresholds
@pytest.mark.parametrize("name", CASES_WITHOUT_TIES)
def test_equals_the_reference_evaluators(load_case, name, row, iou_threshold, method):
    case = load_case(name)
    found = voc_average_precision(
        case.predictions(), case.targets(), iou_threshold=iou_threshold, method=method
    )

    expected_labels = set(case["true_label"].tolist()) | set(case["label"].tolist())
    assert set(found) == expected_labels
    expected = case[f"{METHOD_PREFIX[method]}_ap"][row]
    for label in range(1, case.num_classes + 1):
        if label in expected_labels:
            assert found[label] == pytest.approx(expected[label - 1], abs=1e-9, nan_ok=True), label
    mean = np.mean([found.get(label, 0.0) for label in range(1, case.num_classes + 1)])
    assert mean == pytest.approx(case[f"{METHOD_PREFIX[method]}_map"][row], abs=1e-9, nan_ok=True)


@both_methods
@both_thresholds
def test_equal_scores_keep_the_listed_order(load_case, row, iou_threshold, method):
    """The listed order of this case alternates between images, so the flat arrays are put in directly."""
    case = load_case("bccd_score_ties")
    matches = np.full(len(case["score"]), NO_MATCH)
    for image in range(len(case["image_size"])):
        of_image, true_of_image = (np.flatnonzero(case[key] == image) for key in ("image", "true_image"))
        local = match_to_ground_truth(
            case.boxes[of_image],
            case["label"][of_image],
            case.true_boxes[true_of_image],
            case["true_label"][true_of_image],
            iou_threshold,
        )
        matches[of_image] = np.where(local == NO_MATCH, NO_MATCH, true_of_image[local])
    curves = precision_recall_per_label(
        matches, case["score"], case["label"], case["true_label"], case["true_difficult"]
    )

    expected = case[f"{METHOD_PREFIX[method]}_ap"][row]
    found = [curves[label].average_precision(method) for label in range(1, case.num_classes + 1)]
    assert found == pytest.approx(expected, abs=1e-9)


@both_methods
def test_equal_scores_of_different_images_keep_the_image_order(method):
    hit = {"boxes": [[0, 0, 10, 10]], "scores": [0.5], "labels": [1]}
    miss = {"boxes": [[50, 50, 60, 60]], "scores": [0.5], "labels": [1]}
    target = {"boxes": [[0, 0, 10, 10]], "labels": [1], "difficult": [0]}
    nothing = {"boxes": [], "labels": [], "difficult": []}

    hit_first = voc_average_precision(tensors(hit, miss), tensors(target, nothing), method=method)
    miss_first = voc_average_precision(tensors(miss, hit), tensors(nothing, target), method=method)
    assert hit_first == {1: pytest.approx(1.0)}
    assert miss_first == {1: pytest.approx(0.5)}


@both_methods
@pytest.mark.parametrize("seed", range(12))
def test_equals_a_naive_implementation_on_random_data(seed, method):
    predictions, targets = random_images(seed)
    iou_threshold = (0.3, 0.5, 0.75)[seed % 3]

    found = voc_average_precision(predictions, targets, iou_threshold=iou_threshold, method=method)

    labels = {label for image in (*predictions, *targets) for label in image["labels"].tolist()}
    assert set(found) == labels
    assert labels
    for label in labels:
        expected = naive_average_precision(predictions, targets, label, iou_threshold, method)
        assert found[label] == pytest.approx(expected, abs=1e-9, nan_ok=True), label


@both_methods
def test_no_image_has_no_label(method):
    assert voc_average_precision([], [], method=method) == {}


@both_methods
def test_no_prediction_is_zero(method):
    predictions = tensors({"boxes": [], "scores": [], "labels": []})
    targets = tensors({"boxes": [[0, 0, 5, 5]], "labels": [3], "difficult": [0]})
    assert voc_average_precision(predictions, targets, method=method) == {3: 0.0}


@pytest.mark.parametrize(("method", "expected"), [("voc07", 0.0), ("area", math.nan)])
def test_detections_without_ground_truth(method, expected):
    predictions = tensors({"boxes": [[0, 0, 5, 5]], "scores": [0.9], "labels": [3]})
    targets = tensors({"boxes": [], "labels": [], "difficult": []})
    found = voc_average_precision(predictions, targets, method=method)
    assert found == {3: pytest.approx(expected, nan_ok=True)}


def test_one_curve_serves_both_methods(load_case):
    case = load_case("bccd_base")
    curves = voc_precision_recall(case.predictions(), case.targets())
    assert [curves[label].num_positives for label in (1, 2, 3)] == [682, 65, 58]
    for method in METHOD_PREFIX:
        direct = voc_average_precision(case.predictions(), case.targets(), method=method)
        assert {label: curve.average_precision(method) for label, curve in curves.items()} == direct


def test_half_precision_integer_and_subclass_tensors_are_accepted():
    from torchvision import tv_tensors

    boxes = torch.tensor([[0, 0, 8, 8]])
    predictions = [
        {"boxes": boxes.half(), "scores": torch.tensor([0.5]).bfloat16(), "labels": torch.tensor([1])}
    ]
    targets = [
        {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(9, 9)),
            "labels": torch.tensor([1], dtype=torch.int32),
            "difficult": torch.tensor([0], dtype=torch.uint8),
        }
    ]
    assert voc_average_precision(predictions, targets) == {1: pytest.approx(1.0)}


def test_different_numbers_of_images_are_refused():
    targets = tensors({"boxes": [], "labels": [], "difficult": []})
    with pytest.raises(LSHFMError, match="0 predictions and 1 targets"):
        voc_average_precision([], targets)


@pytest.mark.parametrize(
    ("side", "key"),
    [
        ("predictions", "scores"),
        ("predictions", "boxes"),
        ("targets", "difficult"),
        ("targets", "labels"),
    ],
)
def test_a_missing_key_is_named(side, key):
    data = {
        "predictions": tensors({"boxes": [], "scores": [], "labels": []}),
        "targets": tensors({"boxes": [], "labels": [], "difficult": []}),
    }
    del data[side][0][key]
    with pytest.raises(LSHFMError, match=rf"{side}\[0\].*'{key}'"):
        voc_average_precision(data["predictions"], data["targets"])


def test_values_that_do_not_fit_together_are_refused():
    targets = tensors({"boxes": [], "labels": [], "difficult": []})
    one_score = tensors({"boxes": [[0, 0, 1, 1], [0, 0, 2, 2]], "scores": [0.5], "labels": [1, 1]})
    with pytest.raises(LSHFMError, match=r"predictions\[0\]\['scores'\].*\(2,\).*found \(1,\)"):
        voc_average_precision(one_score, targets)
    no_tensor = [{"boxes": torch.zeros(0, 4), "scores": [], "labels": torch.zeros(0, dtype=torch.int64)}]
    with pytest.raises(LSHFMError, match="expected a tensor, found list"):
        voc_average_precision(no_tensor, targets)


def test_an_unknown_method_is_refused():
    with pytest.raises(LSHFMError, match="voc07, area, found 'coco'"):
        voc_average_precision([], [], method="coco")


TENSOR_TYPES = {
    "boxes": torch.float32,
    "scores": torch.float32,
    "labels": torch.int64,
    "difficult": torch.bool,
}


def tensors(*images: dict[str, list]) -> list[dict[str, torch.Tensor]]:
    return [
        {key: torch.tensor(value, dtype=TENSOR_TYPES[key]) for key, value in image.items()}
        for image in images
    ]


def random_images(seed: int) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Images with many jittered boxes and equal scores; some without boxes, some without predictions."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    predictions, targets = [], []
    for _ in range(15):
        num_true, num_predicted = integers(0, 9).item(), integers(0, 25).item()
        corner = integers(0, 20, num_true, 2).float()
        true_boxes = torch.cat([corner, corner + integers(5, 15, num_true, 2)], dim=1)
        true_labels = integers(1, 4, num_true)
        if num_true:
            source = integers(0, num_true, num_predicted)
            boxes = true_boxes[source] + integers(-1, 3, num_predicted, 4)
            labels = torch.where(
                integers(0, 6, num_predicted) == 0, integers(1, 6, num_predicted), true_labels[source]
            )
        else:
            corner = integers(0, 20, num_predicted, 2).float()
            boxes = torch.cat([corner, corner + integers(5, 15, num_predicted, 2)], dim=1)
            labels = integers(1, 6, num_predicted)
        scores = integers(0, 12, num_predicted) / 12
        predictions.append({"boxes": boxes, "scores": scores, "labels": labels})
        targets.append(
            {"boxes": true_boxes, "labels": true_labels, "difficult": integers(0, 4, num_true) == 0}
        )
    return predictions, targets


def naive_average_precision(predictions, targets, label, iou_threshold, method) -> float:
    detections = sorted(
        (
            (score, image, box)
            for image, prediction in enumerate(predictions)
            for box, score, predicted_label in zip(
                *(prediction[key].tolist() for key in ("boxes", "scores", "labels")), strict=True
            )
            if predicted_label == label
        ),
        key=lambda detection: -detection[0],
    )
    num_positives = sum(
        1
        for target in targets
        for true_label, difficult in zip(target["labels"].tolist(), target["difficult"].tolist(), strict=True)
        if true_label == label and not difficult
    )
    taken = set()
    true_positives = false_positives = 0
    curve = []
    for _, image, box in detections:
        best_iou, best_index = 0.0, None
        for index, true_box in enumerate(targets[image]["boxes"].tolist()):
            if targets[image]["labels"][index] == label and naive_iou(box, true_box) > best_iou:
                best_iou, best_index = naive_iou(box, true_box), index
        if best_index is None or best_iou <= iou_threshold:
            false_positives += 1
        elif targets[image]["difficult"][best_index]:
            pass
        elif (image, best_index) in taken:
            false_positives += 1
        else:
            taken.add((image, best_index))
            true_positives += 1
        if num_positives and true_positives + false_positives:
            curve.append(
                (true_positives / num_positives, true_positives / (true_positives + false_positives))
            )
    if num_positives == 0:
        return math.nan if method == "area" and detections else 0.0

    def best_precision(recall: float) -> float:
        return max((precision for reached, precision in curve if reached >= recall), default=0.0)

    if method == "voc07":
        return sum(best_precision(point * 0.1) for point in range(11)) / 11
    recalls = sorted({recall for recall, _ in curve if recall > 0})
    return sum(
        (recall - before) * best_precision(recall)
        for before, recall in zip([0.0, *recalls], recalls, strict=False)
    )


def naive_iou(box, other) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return intersection / (areas - intersection)
