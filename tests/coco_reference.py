"""COCO's figures of pycocotools and tables of faster-coco-eval, called directly, as references."""

import contextlib
import io
import math

import faster_coco_eval
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def pycocotools_figures(num_classes, predictions, targets) -> tuple[list[float], list[float]]:
    """COCOeval's 12 statistics and AP per class in 0..100 on objects built here, difficult ones dropped."""

    def annotations(image_id, objects, keep):
        boxes, labels = objects["boxes"][keep], objects["labels"][keep]
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = objects["area"][keep] if "area" in objects else sides.prod(dim=1)
        crowds = objects["crowd"][keep].long() if "crowd" in objects else torch.zeros_like(labels)
        columns = (boxes.tolist(), labels.tolist(), areas.tolist(), crowds.tolist())
        for (x1, y1, x2, y2), label, area, crowd in zip(*columns, strict=True):
            yield {
                "image_id": image_id,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": crowd,
            }

    ground_truth, detections = [], []
    for image_id, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        ground_truth += annotations(image_id, target, ~target["difficult"])
        scored = zip(
            annotations(image_id, prediction, slice(None)), prediction["scores"].tolist(), strict=True
        )
        detections += [annotation | {"score": score} for annotation, score in scored]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image_id} for image_id in range(len(targets))],
            "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
            "annotations": [{"id": index, **entry} for index, entry in enumerate(ground_truth, start=1)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = []
    for k in range(num_classes):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        known = precision[precision > -1]
        per_class.append(100 * known.mean() if len(known) else math.nan)
    return [100 * value if value > -1 else math.nan for value in evaluation.stats], per_class


def faster_coco_eval_tables(predictions, targets, detection_limits):
    """Precision [IoU, recall, class, size, limit], recall [IoU, class, size, limit] and labels of the classes.

    Targets have `boxes`, `labels`, `iscrowd` and `area`. The thresholds are exact, which the library's are not.
    """
    labels = torch.cat([part["labels"] for part in (*predictions, *targets)]).unique().tolist()

    def indexed(parts):
        annotations = []
        for image_id, part in enumerate(parts):
            for index, (x1, y1, x2, y2) in enumerate(part["boxes"].tolist()):
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations) + 1, "image_id": image_id, "bbox": box, "iscrowd": 0}
                entry |= {"area": box[2] * box[3], "category_id": int(part["labels"][index])}
                names = {"scores": "score", "area": "area", "iscrowd": "iscrowd"}
                annotations.append(
                    entry | {name: part[key][index].item() for key, name in names.items() if key in part}
                )
        coco = faster_coco_eval.COCO()
        coco.dataset = {
            "images": [{"id": image_id} for image_id in range(len(parts))],
            "categories": [{"id": label, "name": str(label)} for label in labels],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    evaluation = faster_coco_eval.COCOeval_faster(indexed(targets), indexed(predictions), iouType="bbox")
    evaluation.params.iouThrs = np.linspace(0.5, 0.95, 10)
    evaluation.params.recThrs = np.linspace(0.0, 1.0, 101)
    evaluation.params.maxDets = list(detection_limits)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"], labels
