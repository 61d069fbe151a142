"""Warning about photos that EXIF rotates or mirrors."""

from collections.abc import Sequence

from lshfm_pl.data.dataset import DetectionRecord
from lshfm_pl.data.faults import Fault
from lshfm_pl.data.images import exif_orientation

__all__ = ["orientation_faults"]

_MOST = 2000
"""Number of images whose headers are read. `check_data` reads all."""


def orientation_faults(records: Sequence[DetectionRecord]) -> list[Fault]:
    """One warning about the photos that EXIF rotates or mirrors, and how they are read; [] without such photos.

    A photo is rotated if its annotated width and height are those of the rotated image. Otherwise nothing says
    whether its boxes belong to the stored or to the rotated pixels, and the stored pixels are used.
    """
    step = max(1, -(-len(records) // _MOST))
    looked_at = records[::step]
    turned: list[DetectionRecord] = []
    stored: list[DetectionRecord] = []
    for record in looked_at:
        found = exif_orientation(record.image_path)
        if found is not None:
            size = record.width, record.height
            (turned if found.is_turned and found.size == size[::-1] != size else stored).append(record)
    if not turned and not stored:
        return []
    of_all = "" if step == 1 else f" of {len(looked_at):,} that were checked"
    outcomes = []
    if turned:
        outcomes.append(f"{len(turned):,} are rotated, as their annotated sizes require")
    if stored:
        outcomes.append(
            f"{len(stored):,} are read as stored, since their annotated sizes do not require a rotation: "
            "their boxes must refer to the stored pixels, otherwise store the photos upright; the first is "
            f"{stored[0].image_path.name}"
        )
    first = (stored or turned)[0]
    text = f"EXIF rotates or mirrors {len(turned) + len(stored):,} images{of_all}: {'; '.join(outcomes)}."
    return [Fault("image-exif-rotated", first.image_path, text)]
