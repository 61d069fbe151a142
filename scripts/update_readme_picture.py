"""Take the picture of a finished quickstart into docs/, small enough for the repository.

python scripts/update_readme_picture.py outputs/quickstart/detections.png docs/detections.png
"""

import sys
from pathlib import Path

from PIL import Image

MAX_WIDTH = 1000


def main(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        picture.thumbnail((MAX_WIDTH, 10 * MAX_WIDTH))
        # 128 colours are enough for drawn scenes and a third of the bytes.
        picture.convert("RGB").quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
