"""Resampled AP against the AP of resampled images, and intervals against known distributions."""

from dataclasses import replace

import numpy as np
import pytest
from run_files import make_record

from lshfm_pl.metrics import EvaluationRecord, bootstrap
from lshfm_pl.metrics.bootstrap import (
    draw_images,
    percentile_interval,
    resampled_figures,
    resampled_positives,
)

FIGURES = ("AP", "AP50")


def side_by_side(record, times):
    """The record of a test set that contains image i `times[i]` times."""
    new_index = np.concatenate([[0], np.cumsum(times)])
    image, rows = [], []
    for d, index in enumerate(record.image):
        for copy in range(times[index]):
            rows.append(d)
            image.append(new_index[index] + copy)
    rows, image = np.array(rows, dtype=int), np.array(image, dtype=np.int32)
    order = np.lexsort((image, record.label[rows]))
    rows, image = rows[order], image[order]
    return EvaluationRecord(
        class_names=record.class_names,
        image_ids=np.arange(sum(times)),
        num_objects=np.repeat(record.num_objects, times, axis=0),
        num_positives=np.repeat(record.num_positives, times, axis=0),
        image=image,
        label=record.label[rows],
        score=record.score[rows],
        matched=record.matched[rows],
        ignored=record.ignored[rows],
    )


def with_crowds(record):
    """Detections of which some are ignored at some thresholds."""
    ignored = np.where(np.arange(len(record.image)) % 5 == 0, record.matched & 21, 0)
    return replace(record, ignored=ignored.astype(np.uint16))


@pytest.mark.parametrize("change", [lambda record: record, with_crowds])
def test_a_resample_has_the_figures_of_its_images_side_by_side(change):
    record = change(make_record(images=25))
    counts = draw_images(25, 6, seed=3)
    assert counts.sum(axis=0).tolist() == [25] * 6
    found = resampled_figures(record, counts)
    for column, times in enumerate(counts.T.tolist()):
        expected = side_by_side(record, times).figures()
        assert found[:, column] == pytest.approx([expected[name] for name in FIGURES], abs=1e-9)
    assert len(set(found[0].tolist())) > 1


def test_every_image_once_is_the_test_set_itself():
    record = make_record()
    found = resampled_figures(record, np.ones((40, 1), np.int32))
    assert found[:, 0] == pytest.approx([record.figures()[name] for name in FIGURES], abs=1e-9)


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    record = make_record(found=1.0, images=4, false_per_image=0)
    positives = record.num_positives.copy()
    positives[1:, 1] = 0  # the second class occurs only in the first image
    keep = (record.label == 1) | (record.image == 0)
    record = replace(
        record,
        num_positives=positives,
        **{name: getattr(record, name)[keep] for name in ("image", "label", "score", "matched", "ignored")},
    )
    counts = np.array([[0, 4], [4, 0], [0, 0], [0, 0]], np.int32)
    assert resampled_figures(record, counts)[1].tolist() == pytest.approx([100, 100])
    assert resampled_figures(record, np.zeros((4, 2), np.int32)).tolist() == [[0, 0], [0, 0]]


def test_interval_of_a_share_has_the_width_of_the_binomial():
    """Without false positives AP50 is recall to within 1/101, and found images are drawn as a binomial."""
    images, found = 400, 0.3
    record = make_record(found, images=images, false_per_image=0)
    values = resampled_figures(record, draw_images(images, 4000, seed=0))[1]
    share = np.mean([(record.label == label).sum() / images for label in (1, 2)])
    deviation = 100 * np.sqrt(share * (1 - share) / images / 2)  # the mean of two independent classes
    low, high = percentile_interval(values)
    assert (low, high) == pytest.approx(
        (100 * share - 1.96 * deviation, 100 * share + 1.96 * deviation), abs=0.8
    )
    assert values.std() == pytest.approx(deviation, rel=0.1)


def test_difference_of_two_detectors_is_paired_by_image():
    """The difference of two detectors that agree on 90 % of the images varies far less than each of them."""
    first = make_record(0.5, images=300, false_per_image=0)
    drop = first.image % 10 == 0
    second = replace(
        first,
        **{name: getattr(first, name)[~drop] for name in ("image", "label", "score", "matched", "ignored")},
    )
    counts = draw_images(300, 1000, seed=1)
    one, other = resampled_figures(first, counts)[1], resampled_figures(second, counts)[1]
    paired, unpaired = (one - other).std(), (one - other[::-1]).std()
    assert paired < 0.6 * unpaired
    assert percentile_interval(one - one) == (0, 0)


def test_images_are_drawn_by_the_seed_and_evenly():
    counts = draw_images(50, 2000, seed=5)
    np.testing.assert_array_equal(counts, draw_images(50, 2000, seed=5))
    assert not np.array_equal(counts, draw_images(50, 2000, seed=6))
    # The mean count of each image is 1 ± sqrt(0.98 / 2000); five standard deviations.
    assert np.abs(counts.mean(axis=1) - 1).max() < 5 * np.sqrt(0.98 / 2000)
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_interval_leaves_a_fortieth_on_either_side():
    assert percentile_interval(np.arange(1001)) == pytest.approx((25, 975))


def test_positives_of_the_test_set_serve_other_records_and_several_blocks():
    one, other = make_record(0.9, images=25, seed=1), make_record(0.4, images=25, seed=2)
    counts = draw_images(25, 300, seed=3)
    positives = resampled_positives(one, counts)
    assert np.array_equal(resampled_figures(other, counts, positives), resampled_figures(other, counts))
    first = resampled_figures(other, counts[:, 200:210])
    assert np.array_equal(resampled_figures(other, counts, positives)[:, 200:210], first)


def test_how_many_are_computed_together_changes_nothing(monkeypatch):
    record, counts = with_crowds(make_record(0.8, images=25)), draw_images(25, 40, seed=3)
    expected = resampled_figures(record, counts)
    for name, size in (("SUMMED", 2), ("CURVES", 3), ("BLOCK", 7)):
        monkeypatch.setattr(bootstrap, name, size)
    np.testing.assert_allclose(resampled_figures(record, counts), expected, rtol=0, atol=1e-10)


def test_more_copies_of_an_image_than_a_byte_can_count():
    record = make_record(0.8, images=3)
    times = [300, 0, 2]
    figures = side_by_side(record, times).figures()
    found = resampled_figures(record, np.array(times, np.int32)[:, None])
    assert found[:, 0] == pytest.approx([figures[name] for name in FIGURES], abs=1e-9)


def test_record_without_detections_or_classes_has_figures_of_zero():
    record = make_record(images=4)
    nothing = {name: getattr(record, name)[:0] for name in ("image", "label", "score", "matched", "ignored")}
    counts = draw_images(4, 5, seed=0)
    assert not resampled_figures(replace(record, **nothing), counts).any()
    no_classes = {name: getattr(record, name)[:, :0] for name in ("num_objects", "num_positives")}
    assert not resampled_figures(replace(record, class_names=(), **no_classes, **nothing), counts).any()
