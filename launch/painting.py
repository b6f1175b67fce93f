"""Pictures as files: SVG as text, PNG painted by Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from longtake.scheduler.errors import UserError
from longtake.scheduler.picture import WHITE, Box, Label, Picture, Rule

FINE = 2  # pixels of a PNG for one of the picture
KINDS = (".svg", ".png")


def check_picture(path: Path) -> None:
    """Refuse what `write_picture` could not write, before any work is spent on it.

    Raises:
        UserError: it is of another kind.
    """
    if path.suffix not in KINDS:
        raise UserError(f"a drawing is an {' or '.join(KINDS)} file, got {path}")


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format of its name.

    Raises:
        UserError: it can't be written.
    """
    check_picture(path)
    try:
        if path.suffix == ".svg":
            path.write_text(picture.to_svg(), encoding="utf-8")
        else:
            paint(picture).save(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the drawing cannot be written to {path}: {reason}") from error


def paint(picture: Picture) -> Image.Image:
    """In pixels, `FINE` times as large."""
    image = Image.new("RGB", (picture.width * FINE, picture.height * FINE), WHITE)
    canvas = ImageDraw.Draw(image)
    for mark in picture.marks:
        match mark:
            case Box():
                edge = round(mark.edge * FINE / 2)
                left, top = round(mark.x * FINE), round(mark.y * FINE)
                right = max(left, round((mark.x + mark.width) * FINE) - 1 - edge)
                bottom = round((mark.y + mark.height) * FINE) - 1
                canvas.rectangle((left, top, right, bottom), mark.fill)
            case Rule():
                x = round(mark.x * FINE)
                canvas.line((x, mark.top * FINE, x, mark.bottom * FINE), mark.ink)
            case Label():
                font = ImageFont.load_default(mark.size * FINE)
                at = (mark.x * FINE, mark.y * FINE)
                canvas.text(at, mark.text, mark.ink, font, anchor="ms" if mark.centred else "ls")
    return image
