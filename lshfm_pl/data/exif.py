"""Photos that EXIF turns or mirrors, in a set that is trained or evaluated on."""

from collections.abc import Sequence

from lshfm_pl.data.dataset import DetectionRecord
from lshfm_pl.data.faults import Fault
from lshfm_pl.data.images import exif_orientation

__all__ = ["orientation_faults"]

_MOST = 2000
"""Images whose headers are looked at: `check_data` looks at all."""


def orientation_faults(records: Sequence[DetectionRecord]) -> list[Fault]:
    """One warning that says how many photos EXIF turns or mirrors, and how they are read; none without such photos.

    A photo is turned where its annotated width and height are those of the turned one. Nothing else tells whether
    boxes are of the stored pixels or of the picture as viewers show it: then the pixels stay as they are stored.
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
    of_all = "" if step == 1 else f" of {len(looked_at):,} that were looked at"
    outcomes = []
    if turned:
        outcomes.append(f"{len(turned):,} are turned, as their annotated sizes say")
    if stored:
        outcomes.append(
            f"{len(stored):,} stay as they are stored, since their annotated sizes ask for nothing else: "
            f"their boxes must be of the stored pixels, else store the photos upright; {stored[0].image_path.name} "
            "is the first"
        )
    first = (stored or turned)[0]
    text = f"EXIF turns or mirrors {len(turned) + len(stored):,} images{of_all}: {'; '.join(outcomes)}."
    return [Fault("image-exif-rotated", first.image_path, text)]
