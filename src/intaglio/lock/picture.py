"""A picture of a lock at work: originals, keyed images that look the same, the residual made visible, and answers."""

from collections.abc import Sequence
from io import BytesIO

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from intaglio.classifiers import Classifier
from intaglio.data import evenly_spaced
from intaglio.errors import DataError
from intaglio.lock.frames import frames
from intaglio.lock.lock import Lock

#: What the residual is multiplied by; grey is no change.
AMPLIFIED = 12
#: Frames of a clip that are shown, in a square.
_ACROSS = 2
_SIDE = 112
_GAP = 8
_LINE = 14
_RIGHT, _WRONG, _INK, _PAPER = (0, 110, 60), (175, 30, 45), (30, 30, 30), (255, 255, 255)


def lock_picture(
    classifier: Classifier,
    lock: Lock,
    images: Tensor,
    labels: Tensor,
    *,
    user: str,
    names: Sequence[str] = (),
) -> bytes:
    """A PNG with a column for each image: original and its answer, keyed image and its answer, amplified residual.

    Of a clip up to four frames are shown, from its first to its last, row by row.

    An answer is the model's likeliest class with its probability, green where it is the label.

    Raises:
        DataError: no images, or as many labels as there are not images.
    """
    if len(images) != len(labels) or not len(images):
        raise DataError(f"a picture needs as many labels as images, got {len(labels)} and {len(images)}")
    keyed = lock.apply(images, user=user)
    residual = (0.5 + AMPLIFIED * (keyed - images)).clamp(0, 1)
    rows = [
        ("original", images, classifier.log_probs(images).exp()),
        (f"keyed for {user}", keyed, classifier.log_probs(keyed).exp()),
        (f"difference x {AMPLIFIED}", residual, None),
    ]
    step = _SIDE + 2 * _LINE + 2 * _GAP
    canvas = Image.new("RGB", (len(images) * (_SIDE + _GAP) + _GAP, len(rows) * step + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for row, (title, pictures, answers) in enumerate(rows):
        top = _GAP + row * step
        draw.text((_GAP, top), title, _INK, font)
        for column, picture in enumerate(pictures):
            left = _GAP + column * (_SIDE + _GAP)
            canvas.paste(_enlarged(picture), (left, top + _LINE + 2))
            if answers is not None:
                sureness, answer = answers[column].max(dim=0)
                name = names[int(answer)] if len(names) else f"class {int(answer)}"
                colour = _RIGHT if int(answer) == int(labels[column]) else _WRONG
                draw.text((left, top + _LINE + _SIDE + 4), f"{name} {float(sureness):.0%}", colour, font)
    stream = BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _enlarged(image: Tensor) -> Image.Image:
    """Pixels stay sharp squares; large images are reduced."""
    pixels = (
        (_mosaic(frames(image[None])).expand(3, -1, -1) * 255)
        .round()
        .to(torch.uint8)
        .permute(1, 2, 0)
        .contiguous()
        .numpy()
    )
    picture = Image.fromarray(pixels)
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BICUBIC)


def _mosaic(shown: Tensor) -> Tensor:
    """One picture `[C, H', W']` of all frames `[T, C, H, W]`, or of four of them, evenly spread."""
    places = evenly_spaced(len(shown), _ACROSS**2)
    rows = [torch.cat(list(part), dim=2) for part in torch.split(shown[places], _ACROSS)]
    return torch.cat([functional.pad(row, (0, rows[0].shape[2] - row.shape[2])) for row in rows], dim=1)
