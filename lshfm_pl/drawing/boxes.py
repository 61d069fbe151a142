"""Boxes with class names and scores, drawn on one image."""

from collections.abc import Mapping, Sequence

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from lshfm_pl.drawing.colors import BACKGROUND, BLACK, class_color, readable_on
from lshfm_pl.drawing.outlines import Form, cross_out, draw_dashed_rectangle
from lshfm_pl.drawing.text import FONT_FILE, drawable
from lshfm_pl.errors import LSHFMError

__all__ = ["draw_detections"]


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    difficult: Tensor | None = None,
    *,
    false: Tensor | None = None,
    missed: Tensor | None = None,
) -> Tensor:
    """Draw boxes with their class names, and scores if given.

    Args:
        image: [3 or 1, H, W] uint8.
        boxes: [N, 4] x1, y1, x2, y2 in pixels of `image`.
        labels: [N] in 1..C.
        class_names: names of the labels 1..C, without background.
        scores: [N] in 0..1.
        difficult: [N] bool; these boxes get a dashed outline.
        false: [N] bool; these boxes are false positives and are crossed out.
        missed: [N] bool; these objects were not found and are dashed on black. Their `scores` are not written.

    Returns:
        [3, H, W] uint8; `image` itself is not changed.

    Raises:
        LSHFMError: the image is not uint8 CHW, lengths differ, or a label is not in 1..C.
    """
    marks = {Form.DIFFICULT: difficult, Form.FALSE_POSITIVE: false, Form.MISSED: missed}
    _check(
        image,
        labels,
        class_names,
        {"boxes": boxes, "scores": scores} | {form.value: mark for form, mark in marks.items()},
    )
    canvas = image.detach().as_subclass(Tensor).cpu()
    canvas = canvas.expand(3, -1, -1).clone()
    if len(labels) == 0:
        return canvas
    boxes = boxes.detach().as_subclass(Tensor).to("cpu", torch.float32)
    texts = [drawable(class_names[label - 1]) for label in labels.tolist()]
    is_marked = {
        form: torch.zeros(len(labels), dtype=torch.bool) if mark is None else mark.cpu().bool()
        for form, mark in marks.items()
    }
    is_missed, is_dashed = is_marked[Form.MISSED], is_marked[Form.DIFFICULT] | is_marked[Form.MISSED]
    if scores is not None:
        texts = [
            f"{Form.MISSED.value}: {text}" if without else f"{text} {score:.2f}"
            for text, score, without in zip(texts, scores.tolist(), is_missed.tolist(), strict=True)
        ]
    colors = [class_color(label) for label in labels.tolist()]
    side = min(canvas.shape[-2:])
    line_width, font_size = max(1, round(side / 130)), max(10, round(side / 24))

    solid = (~is_dashed).nonzero().flatten().tolist()
    # The lowest score is drawn first, so that the best detections are on top.
    if scores is not None:
        solid.sort(key=lambda index: float(scores[index]))
    if solid:
        canvas = draw_bounding_boxes(
            canvas,
            boxes[solid],
            labels=[texts[index] for index in solid],
            colors=[colors[index] for index in solid],
            width=line_width,
            font=FONT_FILE,
            font_size=font_size,
            label_colors=[readable_on(colors[index]) for index in solid],
            fill_labels=True,
        )
    if len(solid) == len(labels) and not is_marked[Form.FALSE_POSITIVE].any():
        return canvas
    picture = to_pil_image(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(FONT_FILE, font_size)
    for index in is_marked[Form.FALSE_POSITIVE].nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        cross_out(draw, (x1, y1, x2, y2), colors[index], line_width)
    for index in is_dashed.nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        if is_missed[index]:
            draw.rectangle((x1, y1, x2, y2), outline=BLACK, width=line_width + 1)
        draw_dashed_rectangle(draw, (x1, y1, x2, y2), colors[index], line_width)
        draw.text(
            (x1 + line_width + 1, y1 + line_width + 1),
            texts[index],
            fill=BLACK,
            font=font,
            stroke_width=1,
            stroke_fill=BACKGROUND,
        )
    return pil_to_tensor(picture)


def _check(
    image: Tensor, labels: Tensor, class_names: Sequence[str], values: Mapping[str, Tensor | None]
) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise LSHFMError(f"image: expected uint8 [3 or 1, H, W], found {image.dtype} {list(image.shape)}")
    for name, value in values.items():
        if value is not None and len(value) != len(labels):
            raise LSHFMError(f"{name}: expected {len(labels)}, one per label, found {len(value)}")
    outside = [label for label in labels.tolist() if not 1 <= label <= len(class_names)]
    if outside:
        raise LSHFMError(f"labels: expected 1..{len(class_names)} (one per class name), found {outside[0]}")
