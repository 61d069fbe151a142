"""Maps inside of the towers of a dense head, and the teacher's head from there on."""

import pytest
import torch
from small_detectors import (
    EVERY_STUDENT,
    STUDENTS,
    TEACHER_OF,
    RandomData,
    as_float,
    quiet_trainer,
    random_batch,
    short_schedule,
    small_detector,
)
from torchvision.ops import box_iou

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses, make_tap
from lshfm_pl.mimic.features.held import maps_at
from lshfm_pl.mimic.heads import Place, place_of, point_at
from lshfm_pl.training import DistillationModule

RETINANET, FCOS = STUDENTS[1], "fcos_resnet10fpn_tiny"
PLACES = [Place(0), Place(3), Place(3, True), Place(4)]


def recorded(name, place, boxless=()):
    """The pair at a place, the detectors, the record and the batch of the student's maps."""
    student, teacher = small_detector(name).train(), small_detector(TEACHER_OF[name], seed=1).eval()
    images, targets = random_batch(num_images=3, boxless=boxless)
    tap = make_tap(student, teacher, {point_at(place)})
    with tap.recording() as record:
        student(as_float(images), targets)
    return tap.pairs(record)[point_at(place)], student, teacher, record, (as_float(images), targets)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [RETINANET, FCOS])
def test_maps_are_those_of_the_towers_and_the_rest_of_the_head_gives_the_teachers_predictions(name, place):
    assert place_of(point_at(place)) == place
    pair, student, teacher, _, (images, _) = recorded(name, place)
    resized = student.transform(images)[0]
    levels = list(student.backbone(resized.tensors).values())
    for tower, expected in maps_at(student.head, levels, place).items():
        for ours, theirs in zip(pair.student[tower], expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        levels = list(teacher.backbone(resized.tensors).values())
        whole = teacher.head(levels)
        held = {
            name: [level.relu() if place.convolutions else level for level in tower]
            for name, tower in pair.teacher.items()
        }
        found = pair.head(held)
    torch.testing.assert_close(torch.cat(found.logits, dim=1), whole["cls_logits"])
    for index, anchors in enumerate(student.anchor_generator(resized, levels)):
        outputs = whole["bbox_regression"][index]
        decode = teacher.box_coder.decode if name == FCOS else teacher.box_coder.decode_single
        torch.testing.assert_close(
            torch.cat(found.boxes, dim=1)[index], decode(outputs, anchors), atol=1e-4, rtol=1e-5
        )


def test_weights_of_a_retinanet_count_the_foreground_of_the_batch():
    pair, student, _, record, _ = recorded(RETINANET, Place(3), boxless=(1,))
    total, expected = 0, []
    for boxes, anchors in zip(record["batch"].boxes, record["anchors"], strict=True):
        matches = (
            student.proposal_matcher(box_iou(boxes, anchors))
            if len(boxes)
            else torch.full_like(anchors[:, 0], -1)
        )
        total += max(1, int((matches >= 0).sum()))
        expected.append(matches != -2)
    expected = torch.stack(expected) / total
    torch.testing.assert_close(torch.cat(pair.weights, dim=1), expected)


@pytest.mark.parametrize("boxless", [(1,), (0, 1, 2)])
def test_weights_of_an_fcos_are_equal_and_count_its_centerness(boxless):
    pair, _, _, record, _ = recorded(FCOS, Place(2), boxless=boxless)
    total = 0.0
    for boxes, matches, anchors in zip(
        record["batch"].boxes, record["matched"], record["anchors"], strict=True
    ):
        for match, anchor in zip(matches.tolist(), anchors.tolist(), strict=True):
            if match >= 0:
                x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
                x1, y1, x2, y2 = boxes[match].tolist()
                across, down = sorted((x - x1, x2 - x)), sorted((y - y1, y2 - y))
                total += (across[0] / across[1] * down[0] / down[1]) ** 0.5
    weights = torch.cat(pair.weights, dim=1)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / max(1.0, total)))
    assert (total > 0) is (len(boxless) == 1)


def test_padding_has_no_weight_in_a_retinanet():
    student, teacher = small_detector(RETINANET).train(), small_detector(TEACHER_OF[RETINANET], seed=1)
    tap = make_tap(student, teacher, {"dense_head:3"})
    images, targets = random_batch()
    images = [as_float(images)[0], as_float(images)[1][:, :64]]
    targets[1]["boxes"] = targets[1]["boxes"].clamp(max=60)
    targets[1]["boxes"][:, :2].clamp_(max=30)
    with tap.recording() as record:
        student(images, targets)
    pair = tap.pairs(record)["dense_head:3"]
    ((height, width), _), padded = record["batch"].image_sizes, record["batch"].padded_size
    assert (height, width) != padded
    weights, anchors = torch.cat(pair.weights, dim=1)[0], record["anchors"][0]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    outside = (centres[:, 0] >= width) | (centres[:, 1] >= height)
    assert outside.any()
    assert not weights[outside].any()
    assert weights[~outside].any()


@pytest.mark.parametrize("name", [RETINANET, FCOS])
def test_teacher_runs_only_its_backbone_and_head(name):
    student, teacher = small_detector(name).train(), small_detector(TEACHER_OF[name], seed=1)
    module = DistillationModule(student, teacher, build_losses("crosskd", teacher)).train()
    called = set()
    for part_name, part in teacher.named_modules():
        part.register_forward_hook(lambda *_, part_name=part_name: called.add(part_name))
    images, targets = random_batch()
    value = module.losses(as_float(images), targets)["mimic_crosskd"]
    value.backward()
    assert not {"", "transform", "head", "anchor_generator"} & called
    assert {"head.classification_head.cls_logits", "head.regression_head.bbox_reg"} <= called
    assert "head.regression_head.bbox_ctrness" not in called
    own = [student.head.classification_head.conv, student.head.regression_head.conv]
    assert all(next(tower.parameters()).grad.any() for tower in own)
    # The student's last convolution and layers are not used by this loss.
    assert student.head.classification_head.cls_logits.weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", [RETINANET, FCOS])
def test_run_by_crosskd_is_resumed_bit_identically(tmp_path, name):
    def module():
        teacher = small_detector(TEACHER_OF[name], seed=1)
        return DistillationModule(
            small_detector(name), teacher, build_losses("crosskd", teacher), short_schedule()
        )

    def fit(module, epochs, checkpoint=None):
        trainer = quiet_trainer(tmp_path, max_epochs=epochs)
        trainer.fit(module, datamodule=RandomData(2), ckpt_path=checkpoint)
        return trainer

    whole, part, resumed = module(), module(), module()
    fit(whole, 2)
    fit(part, 1).save_checkpoint(tmp_path / "last.ckpt")
    fit(resumed, 2, tmp_path / "last.ckpt")
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    assert not all(torch.equal(value, part.state_dict()[key]) for key, value in whole.state_dict().items())
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "message"),
    [
        (STUDENTS[0], STUDENTS[0], {}, "a Faster R-CNN has no such place; the two can be compared at penul"),
        (EVERY_STUDENT[3], EVERY_STUDENT[3], {}, "a .*SSD.* has no such place"),
        (RETINANET, FCOS, {}, "expected student and teacher of one family; the two can be compared at"),
        (
            RETINANET,
            RETINANET,
            {"anchor_sizes": [[side] * 3 for side in (20, 30, 50, 80, 128)]},
            "need the same anchor_sizes",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused_before_training(student, teacher, changes, message):
    teacher = small_detector(TEACHER_OF[teacher], seed=1, **changes)
    with pytest.raises(LSHFMError, match=message):
        DistillationModule(small_detector(student), teacher, build_losses("crosskd", teacher))


def test_deeper_place_than_the_towers_have_is_refused():
    teacher = small_detector(TEACHER_OF[RETINANET], seed=1)
    with pytest.raises(
        LSHFMError, match="dense_head:5 is inside of a dense head with towers of convolutions"
    ):
        DistillationModule(small_detector(RETINANET), teacher, build_losses("crosskd", teacher, index=5))
