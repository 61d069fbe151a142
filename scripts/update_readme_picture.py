"""Copy two pictures of a finished quickstart to docs/, small enough for the repository.

python scripts/update_readme_picture.py outputs/quickstart
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from lshfm_pl.files import atomic_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
SOURCES = {"comparison.png": "report/comparison_1.png", "detections.png": "detections.png"}
MAX_WIDTH = 1000
MAX_BYTES = 200_000


def shrink(source: Path, target: Path) -> None:
    """Write `source` to `target` with at most `MAX_WIDTH` pixels and `MAX_BYTES` bytes.

    128 colours are enough for drawn scenes, and need a third of the bytes.
    """
    width = MAX_WIDTH
    while True:
        with Image.open(source) as picture:
            picture.thumbnail((width, 10 * width))
            with atomic_file(target) as temporary:
                picture.convert("RGB").quantize(128).save(temporary, format="PNG", optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            return
        width = width * 9 // 10


def main() -> int:
    """Parse the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("quickstart", type=Path, help="folder of a finished `make quickstart`")
    parser.add_argument("--docs", type=Path, default=DOCS, help="default: %(default)s")
    arguments = parser.parse_args()
    missing = [name for name in SOURCES.values() if not (arguments.quickstart / name).is_file()]
    if missing:
        print(
            f"error: {arguments.quickstart}: expected {', '.join(missing)}: run make quickstart",
            file=sys.stderr,
        )
        return 1
    for name, source in SOURCES.items():
        shrink(arguments.quickstart / source, arguments.docs / name)
        print(arguments.docs / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
