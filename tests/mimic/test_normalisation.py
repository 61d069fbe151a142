"""A teacher that normalises images otherwise than its student sees them as its own images."""

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, as_float, random_batch, small_detector

from lshfm_pl.mimic.features import make_tap
from lshfm_pl.mimic.features.normalisation import sees_batches_of
from lshfm_pl.mimic.features.places import feature_grids, ground_truth_features

OTHER = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.25, 1.0]}


@pytest.fixture(params=STUDENTS)
def pair(request):
    return small_detector(request.param).eval(), small_detector(TEACHER_OF[request.param], **OTHER).eval()


def images():
    """Of two sizes, so that both are padded, and with values of 8 bits."""
    whole = as_float(random_batch()[0])
    return [whole[0][:, :70], whole[1][:, :, :90]]


def test_the_teacher_s_maps_are_those_of_its_own_images(pair):
    student, teacher = pair
    batch, own = (each.transform(images())[0].tensors for each in pair)
    assert not torch.allclose(batch, own)
    tap = make_tap(student, teacher, ("pyramid",))
    found = tap.teacher_maps(batch)["pyramid"]
    with torch.no_grad():
        expected = teacher.backbone(own)
    levels = found.values() if isinstance(found, dict) else found
    torch.testing.assert_close(list(levels), list(expected.values()), rtol=1e-3, atol=1e-4)
    with torch.no_grad():  # and alone it is as before
        torch.testing.assert_close(list(teacher.backbone(own).values()), list(expected.values()))


def test_places_are_seen_by_each_detector_as_its_own(pair):
    teacher, image = pair[1], images()[0]
    _, shared = feature_grids(pair, image)[0].maps
    own = feature_grids([teacher], image)[0].maps[0]
    torch.testing.assert_close(shared, own, rtol=1e-3, atol=1e-4)
    targets = [dict(target) for target in random_batch()[1]]
    rows = []
    for detectors in (pair, [teacher]):
        generator = torch.Generator().manual_seed(0)
        found = ground_truth_features(
            detectors, as_float(random_batch()[0]), targets, rows_per_image=8, generator=generator
        )
        rows.append(found[-1])
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-3, atol=1e-4)


def test_nothing_is_hooked_where_both_normalise_alike():
    student, teacher = (small_detector(STUDENTS[0]), small_detector(STUDENTS[0]))
    with sees_batches_of(teacher, student):
        assert not teacher.backbone._forward_pre_hooks
    other = small_detector(STUDENTS[0], **OTHER)
    with sees_batches_of(other, student):
        assert other.backbone._forward_pre_hooks
    assert not other.backbone._forward_pre_hooks
