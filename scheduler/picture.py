"""A picture as a list of marks, to be written as SVG here or painted by whoever has pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
GRAY: Colour = (105, 105, 105)
PALE: Colour = (220, 220, 220)
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Box:
    """A filled rectangle with a white edge, in pixels; `tip` is told of it where one points."""

    x: float
    y: float
    width: float
    height: float
    fill: Colour
    edge: float = 0.0
    tip: str = ""


@dataclass(frozen=True)
class Rule:
    """A thin vertical line."""

    x: float
    top: float
    bottom: float
    ink: Colour = PALE


@dataclass(frozen=True)
class Label:
    """Text whose baseline begins at x, y, or has its middle there."""

    x: float
    y: float
    text: str
    ink: Colour = GRAY
    size: int = 11
    centred: bool = False


@dataclass(frozen=True)
class Picture:
    """Marks on white, the later ones above."""

    width: int
    height: int
    marks: tuple[Box | Rule | Label, ...]

    def to_svg(self) -> str:
        """As text."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
                'font-family="sans-serif">',
                '<rect width="100%" height="100%" fill="white"/>',
                *self._marks(),
                "</svg>\n",
            ]
        )

    def _marks(self) -> Iterator[str]:
        for mark in self.marks:
            match mark:
                case Box():
                    tip = f"<title>{escape(mark.tip)}</title>" if mark.tip else ""
                    edge = f' stroke="white" stroke-width="{mark.edge:.2f}"' if mark.edge else ""
                    yield (
                        f'<rect x="{mark.x:.2f}" y="{mark.y:.2f}" width="{mark.width:.2f}" '
                        f'height="{mark.height:.2f}" fill="{_rgb(mark.fill)}"{edge}>{tip}</rect>'
                    )
                case Rule():
                    yield (
                        f'<line x1="{mark.x:.2f}" y1="{mark.top}" x2="{mark.x:.2f}" '
                        f'y2="{mark.bottom}" stroke="{_rgb(mark.ink)}"/>'
                    )
                case Label():
                    anchor = ' text-anchor="middle"' if mark.centred else ""
                    yield (
                        f'<text x="{mark.x:.2f}" y="{mark.y:.2f}" font-size="{mark.size}"{anchor} '
                        f'fill="{_rgb(mark.ink)}">{escape(mark.text)}</text>'
                    )


def _rgb(colour: Colour) -> str:
    return f"rgb({','.join(map(str, colour))})"
