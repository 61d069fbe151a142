import pytest
from coco_files import TWO_IMAGES, annotation, coco_content


@pytest.fixture
def content():
    return coco_content(
        TWO_IMAGES,
        [
            annotation(8, 18, (1.5, 2.25, 10, 20), area=77.5),
            annotation(2, 3, (0, 0, 5, 6), iscrowd=1),
            annotation(8, 7),
        ],
    )
