"""Maps of agreement against features that are computed one by one."""

import pytest
import torch
import torch.nn.functional as F
from small_detectors import STUDENTS, TEACHER_OF, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import LSH
from lshfm_pl.mimic.agreement import agreement_maps, find_hash
from lshfm_pl.mimic.features import tap_of


@pytest.fixture(scope="module", params=STUDENTS)
def pair(request):
    return small_detector(request.param).eval(), small_detector(TEACHER_OF[request.param], seed=1).eval()


@pytest.fixture
def image():
    # Neither resized nor padded.
    return torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_maps_are_those_of_the_features_one_by_one(pair, image):
    student, teacher = pair
    tap = tap_of(teacher)
    head = LSH(tap.num_features, 300, std=tap.classifier_std, seed=3)
    head.bias.copy_(torch.linspace(-0.01, 0.01, 300))
    maps = agreement_maps(student, teacher, image, head)
    batch = student.transform([image / 255])[0].tensors
    with torch.no_grad():
        if hasattr(student, "roi_heads"):
            first = maps[5]
            assert first.title == "boxes of 24 pixels"
            assert first.cosine_hw.shape == (11, 13)
            # Row 2, column 4.
            x, y = 4.5 * 160 / 13, 2.5 * 128 / 11
            boxes = [torch.tensor([[x - 12, y - 12, x + 12, y + 12]])]
            features = []
            for detector in pair:
                pooled = detector.roi_heads.box_roi_pool(detector.backbone(batch), boxes, [(128, 160)])
                features.append(detector.roi_heads.box_head(pooled))
        else:
            first = maps[0]
            assert (first.title, first.cosine_hw.shape) == ("tower, stride 8", (16, 20))
            features = []
            for detector in pair:
                tower = detector.head.classification_head.conv(next(iter(detector.backbone(batch).values())))
                features.append(F.pad(tower, (1, 1, 1, 1))[0, :, 2:5, 4:7].reshape(1, -1))
        bits = [head.project(feature) > 0 for feature in features]
    assert first.cosine_hw[2, 4] == pytest.approx(F.cosine_similarity(*features).item(), abs=1e-4)
    assert first.bits_hw[2, 4] == pytest.approx((bits[0] == bits[1]).float().mean().item(), abs=4e-3)


def test_maps_of_the_backbone_have_no_bits(image):
    student, teacher = (small_detector(name).eval() for name in (STUDENTS[0], TEACHER_OF[STUDENTS[0]]))
    maps = agreement_maps(student, teacher, image, find_hash(None, teacher, 0)[0])
    assert [entry.title for entry in maps[:2]] == ["backbone map, stride 4", "backbone map, stride 8"]
    assert [entry.bits_hw is None for entry in maps] == [True] * 5 + [False] * 5
    with torch.no_grad():
        batch = student.transform([image / 255])[0].tensors
        levels = [list(detector.backbone(batch).values())[1] for detector in (student, teacher)]
    expected = F.cosine_similarity(*levels)[0]
    torch.testing.assert_close(maps[1].cosine_hw, expected, atol=1e-5, rtol=0)


def test_maps_are_cropped_to_the_image():
    student, teacher = (small_detector(name).eval() for name in (STUDENTS[1], TEACHER_OF[STUDENTS[1]]))
    image = torch.zeros(3, 128, 136, dtype=torch.uint8)  # padded to 128 × 160
    maps = agreement_maps(student, teacher, image, find_hash(None, teacher, 0)[0])
    assert [tuple(entry.bits_hw.shape) for entry in maps] == [(16, 17), (8, 9), (4, 5), (2, 3), (1, 2)]


def test_a_detector_agrees_with_itself_everywhere(pair, image):
    student, _ = pair
    for entry in agreement_maps(student, student, image, find_hash(None, student, 0)[0]):
        has_signal = entry.cosine_hw != 0
        torch.testing.assert_close(entry.cosine_hw[has_signal], torch.ones(int(has_signal.sum())))
        assert entry.bits_hw is None or bool((entry.bits_hw == 1).all())


def test_backbones_of_other_widths_are_compared_by_their_boxes(image):
    student = small_detector(STUDENTS[0], fpn_channels=32).eval()
    teacher = small_detector(TEACHER_OF[STUDENTS[0]]).eval()
    maps = agreement_maps(student, teacher, image, find_hash(None, teacher, 0)[0])
    assert [entry.cosine_hw is None for entry in maps] == [True] * 5 + [False] * 5


def test_hash_is_the_checkpoints_if_it_has_one(tmp_path):
    teacher = small_detector(TEACHER_OF[STUDENTS[0]])
    drawn, told = find_hash(None, teacher, 5)
    assert told == "1024 random hashes, seed 5"
    assert drawn.weight.std() == pytest.approx(tap_of(teacher).classifier_std, rel=0.01)
    weight = torch.randn(7, 256)
    for prefix in ("mimic.", "mimic.lsh.loss."):  # from before there were terms, and today's
        hash_ = {f"{prefix}weight": weight, f"{prefix}bias": torch.ones(7)}
        torch.save({"state_dict": hash_}, tmp_path / "last.ckpt")
        head, told = find_hash(tmp_path / "last.ckpt", teacher, 5)
        assert torch.equal(head.weight, weight)
        assert torch.equal(head.bias, torch.ones(7))
    assert told == f"the hash that {tmp_path}/last.ckpt was trained with"
    torch.save({"state_dict": {"detector.x": weight}}, tmp_path / "best.ckpt")
    assert find_hash(tmp_path / "best.ckpt", teacher, 5)[1] == "1024 random hashes, seed 5"
    torch.save({"weight": weight[:, :9]}, tmp_path / "other.ckpt")
    with pytest.raises(LSHFMError, match="256"):
        find_hash(tmp_path / "other.ckpt", teacher, 5)
