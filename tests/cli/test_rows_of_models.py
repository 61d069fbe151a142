"""The entries of `models` in `benchmark inference`."""

import pytest

from lshfm_pl.cli.rows import Row, read_rows
from lshfm_pl.errors import LSHFMError


def test_entries_are_names_files_or_names_with_settings():
    narrow = {"narrow": {"model": "fcos_mobilenetv2fpn", "fpn_channels": 64}}
    entries = ["ssdlite320_mobilenetv3", "run/last.ckpt", "a.pth", narrow, {"mine": {"checkpoint": "b.ckpt"}}]
    assert read_rows(entries) == [
        Row("ssdlite320_mobilenetv3", "ssdlite320_mobilenetv3"),
        Row("", None, "run/last.ckpt"),
        Row("", None, "a.pth"),
        Row("narrow", "fcos_mobilenetv2fpn", None, {"fpn_channels": 64}),
        Row("mine", None, "b.ckpt"),
    ]


def test_single_entries_need_no_list():
    assert read_rows(None) == []
    assert read_rows("fcos_resnet50fpn") == read_rows(["fcos_resnet50fpn"])
    assert read_rows({"fcos_resnet50fpn": {"width": 0.5}}) == [
        Row("fcos_resnet50fpn", "fcos_resnet50fpn", None, {"width": 0.5})
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["fcos_resnet50fnp"], "found fcos_resnet50fnp; did you mean fcos_resnet50fpn"),
        (["fcos_resnet50fpn"] * 2, "found fcos_resnet50fpn twice"),
        (
            [{"a": {"checkpoint": "b.ckpt", "width": 2}}],
            "a: expected only model beside checkpoint, found width",
        ),
        ([{"a": 1, "b": 2}], "expected names in conf/model, files, or a name with settings"),
        ([3], "expected names in conf/model, files, or a name with settings"),
    ],
)
def test_wrong_entries_are_refused(entries, message):
    with pytest.raises(LSHFMError, match=message):
        read_rows(entries)
