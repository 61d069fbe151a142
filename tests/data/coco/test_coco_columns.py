"""Annotations that are read all at once are those that are read one by one, with the same messages."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from coco_files import TWO_IMAGES, annotation, coco_content, write_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lshfm_pl.data.coco import annotations as reader
from lshfm_pl.data.coco.annotations import read_coco_json
from lshfm_pl.data.coco.columns import usual_columns
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.errors import LSHFMError

NUMBERS = st.one_of(
    st.integers(-2, 60),
    st.floats(-2, 60),
    st.sampled_from([0, -0.0, 1e9, -1e9, 1e9 + 1, 1e18, 10**18 - 1, 10**400, float("nan"), float("inf")]),
    st.sampled_from([True, None, "", "12", "3.5", "x", [], {}]),
)
VALUES = {
    "id": NUMBERS,
    "image_id": st.sampled_from([2, 8, 2.0, "8", "008", 99, None, True, 10**50]),
    "category_id": st.sampled_from([3, 7, 18, 3.0, "7", 99, None, True, 2**63]),
    "bbox": st.one_of(st.lists(NUMBERS, min_size=3, max_size=5), st.sampled_from([None, "[1, 2, 3, 4]", {}])),
    "area": NUMBERS,
    "iscrowd": st.sampled_from([0, 1, 0.0, True, False, None, "1", "true", 2, float("nan"), []]),
    "segmentation": st.sampled_from([[], {}, None, [[1, 1, 2, 1, 2, 2]]]),
}
USUAL = [
    annotation(8, 18, (1.5, 2.25, 10, 20), area=77.5),
    annotation(2, 3, (0, 0, 5, 6), iscrowd=1),
    annotation(8, 7),
    annotation(2, 7, (-3, 1, 4.75, 0)),
]
examples = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def contents(draw):
    """A usual file in which a few values are replaced, removed or repeated."""
    content = coco_content(TWO_IMAGES, copy.deepcopy(USUAL))
    entries = content["annotations"]
    for key in draw(st.lists(st.sampled_from(["area", "iscrowd", "id", "segmentation"]), max_size=2)):
        for entry in entries:
            entry.pop(key, None)
    for _ in range(draw(st.integers(0, 3))):
        entry = entries[draw(st.integers(0, len(entries) - 1))]
        key = draw(st.sampled_from(sorted(VALUES)))
        if draw(st.booleans()):
            entry[key] = draw(VALUES[key])
        else:
            entry.pop(key, None)
    if draw(st.integers(0, 9)) == 0:
        entries.append(draw(st.sampled_from([None, 3, [], "entry", dict(entries[0])])))
    return content


def outcome(path, on_error):
    """What reading gives: the file's content and the faults, or the error."""
    log = FaultLog(on_error)
    try:
        file = read_coco_json(path, log)
    except LSHFMError as error:
        return str(error)
    content = {field.name: getattr(file, field.name) for field in dataclasses.fields(file)}
    arrays = {
        name: (value.dtype.str, value.shape, value.tobytes())
        for name, value in content.items()
        if isinstance(value, np.ndarray)
    }
    return content | arrays, [(fault.kind, str(fault), fault.image_id) for fault in log.faults]


@examples
@given(contents(), st.sampled_from(["error", "skip"]))
def test_all_at_once_and_one_by_one_give_the_same_content_and_messages(tmp_path, content, on_error):
    path = write_json(tmp_path, content)
    found = outcome(path, on_error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "usual_columns", lambda *_: None)
        assert found == outcome(path, on_error)


@pytest.mark.parametrize("missing", [(), ("area",), ("iscrowd",), ("area", "iscrowd", "segmentation")])
def test_usual_files_are_read_at_once(tmp_path, missing):
    content = coco_content(TWO_IMAGES, copy.deepcopy(USUAL))
    for entry in content["annotations"]:
        for key in missing:
            entry.pop(key, None)
    path = write_json(tmp_path, content)
    expected = outcome(path, "error")
    assert not isinstance(expected, str)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "columns_of", None)
        assert outcome(path, "error") == expected


@pytest.mark.parametrize(
    "text", ['"image_id": 8, "image_id": 2', '"bbox": [1, 1, 2, 2], "bbox": [1, 1, 3, 3]', '"id": 1, "id": 2']
)
def test_an_entry_with_a_repeated_key_is_not_read_at_once(tmp_path, text):
    content = coco_content(TWO_IMAGES, copy.deepcopy(USUAL))
    whole = json.dumps(content)
    first = json.dumps(content["annotations"][0])
    key = text.split(":")[0].strip('"')
    others = {name: value for name, value in content["annotations"][0].items() if name != key}
    path = write_json(tmp_path, whole.replace(first, f"{{{text}, {json.dumps(others)[1:]}"))
    with pytest.raises(LSHFMError, match=rf"entry 1 .*has '{key}' more than once"):
        read_coco_json(path)


@pytest.mark.parametrize("entries", [None, [], {}, [3], [{}], "text"])
def test_what_is_no_list_of_objects_is_left_to_the_reader_of_entries(entries):
    assert usual_columns(entries, {3}, {8: 0}) is None
