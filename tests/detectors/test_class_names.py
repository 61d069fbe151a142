from lshfm_pl.detectors.class_names import labels_by_name


def test_classes_are_found_by_name_from_1():
    assert labels_by_name(["car", "dog", "person"], ["person", "bicycle", "car"]) == [3, None, 1]
    assert labels_by_name([], ["person"]) == []
    assert labels_by_name(["person"], []) == [None]


def test_spelling_may_differ():
    given = ["Dining Table", "airplane", "potted-plant", "tv", "Straße"]
    assert labels_by_name(["diningtable", "aeroplane", "potted_plant", "tvmonitor", "STRASSE"], given) == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_exact_name_goes_first_and_of_similar_ones_the_first():
    assert labels_by_name(["cat", "Dog"], ["Cat", "cat", "DOG", "dog"]) == [2, 3]
    assert labels_by_name(["cat"], ["cat", "cat"]) == [1]
