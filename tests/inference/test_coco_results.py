from lshfm_pl.inference.coco_results import unused_labels


def test_only_gaps_between_category_ids_are_no_class():
    names = ("unused_1", "cat", "N/A", "unused_5", "unused_5")
    assert unused_labels(names, {"data": {"category_ids": "keep"}}) == {1, 5}
    assert (
        unused_labels(names, {"data": None}) == unused_labels(names, []) == {1, 5}
    )  # as in published weights
    assert unused_labels(names, {"data": {"category_ids": "contiguous"}}) == set()
    assert unused_labels(names, {"data": {"train_split": "train"}}) == set()
