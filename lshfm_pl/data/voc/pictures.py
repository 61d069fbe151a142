"""Finding the image file of an id in VOC layout."""

from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultLog
from lshfm_pl.data.images import SUFFIXES
from lshfm_pl.data.voc.annotations import Annotation
from lshfm_pl.data.voc.layout import Files
from lshfm_pl.errors import first_few

__all__ = ["PictureError", "find_picture"]


class PictureError(Exception):
    """Why no image file was found for an id."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def find_picture(files: Files, name: str, annotation: Annotation | None, log: FaultLog) -> Path:
    """The image of an id: the file with its name. `<filename>` decides if there are several, or none.

    Args:
        files: files of the folder.
        name: the id.
        annotation: annotation of the image; None if it can't be read.
        log: receives a warning if the choice was not obvious.

    Raises:
        PictureError: there is no such file, or more than one.
    """
    filename = annotation.filename if annotation else ""
    stated = filename.replace("\\", "/").rpartition("/")[2]
    pictures = files.pictures(name)
    if len(pictures) > 1:
        of_name = [path for path in pictures if path.name == stated]
        if len(of_name) == 1 and annotation is not None:
            names = first_few([path.name for path in pictures])
            text = f"its <filename> {stated} decides which of {names} is its image."
            log.add(Fault("image-chosen", annotation.path, text))
            return of_name[0]
        found = f"'{name}' has several images: {first_few([path.name for path in pictures])}"
        advice = "<filename> of its annotation names none of them. Correct it, or remove the others."
        raise PictureError("image-ambiguous", f"{found}; {advice}")
    if pictures:
        picture = pictures[0]
        other = files.named(name, stated) if Path(stated).stem != picture.stem else None
        if other not in (None, picture) and annotation is not None:
            text = (
                f"its <filename> {stated} is another image; {picture.name} is used, which has the id's name."
            )
            log.add(Fault("image-chosen", annotation.path, text))
        return picture
    alike = files.pictures_alike(name)
    named = alike[0] if len(alike) == 1 else files.named(name, filename) if filename else None
    if named is not None:
        reason = "differs only in case or Unicode form" if alike else "is its <filename>"
        text = f"'{name}' has no image of exactly this name: {named.name} is used, which {reason}."
        log.add(Fault("image-chosen", annotation.path if annotation else named, text))
        return named
    folder = (files.source.image_folder / name).parent
    others = files.others(name)
    advice = "Add the file or remove the line."
    if others:
        advice = f"There is {first_few(others)}: convert it to one of these formats, or correct its name."
    text = f"'{name}' has no image ({', '.join(sorted(SUFFIXES))}) in {folder}. {advice}"
    raise PictureError("image-missing", text)
