"""The picture of a confusion matrix, drawn with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from .evaluation import Evaluation

#: Side of a cell in pixels where counts are written into it, and the total that the cells of larger matrices share.
CELL, WHOLE = 44, 900
#: From here on there is no room for counts and names.
MANY = 40
INK, PAPER, GRID = (32, 32, 32), (255, 255, 255), (225, 225, 225)
#: What is right is drawn towards the first colour, what is wrong towards the second.
RIGHT, WRONG = np.array([33, 102, 172]), np.array([178, 24, 43])


def draw(result: Evaluation) -> Image.Image:
    """The matrix as an RGB picture: a row for each true class, its cells coloured by the share of its pictures."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    matrix = result.confusion if result.confusion[:, -1].any() else result.confusion[:, :-1]
    rows, columns = matrix.shape
    written = rows <= MANY
    cell = CELL if written else max(2, WHOLE // rows)
    names = [*result.labels, *(["other"] if columns > rows else [])]
    margin = 20 + (max(round(font.getlength(name)) for name in names) if written else 0)
    title = (
        f"{result.model}: top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} %, {result.pictures} pictures"
    )
    top = margin + 44
    width = max(margin + columns * cell + 20, round(font.getlength(title)) + 40)
    page = Image.new("RGB", (width, top + rows * cell + 40), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((20, 14), title, INK, font)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for i in range(rows):
        for j in range(columns):
            x, y = margin + j * cell, top + i * cell
            colour = PAPER + np.sqrt(share[i, j]) * ((RIGHT if i == j else WRONG) - np.array(PAPER))
            pen.rectangle((x, y, x + cell - 1, y + cell - 1), tuple(int(c) for c in colour), GRID if written else None)
            if written and matrix[i, j]:
                text = str(matrix[i, j])
                ink = PAPER if share[i, j] > 0.3 else INK
                pen.text((x + (cell - font.getlength(text)) / 2, y + cell / 2 - 6), text, ink, font)
    if written:
        for i, name in enumerate(result.labels):
            pen.text((margin - 8 - font.getlength(name), top + i * cell + cell / 2 - 6), name, INK, font)
        for j, name in enumerate(names):
            _upright(page, name, margin + j * cell + cell // 2, top - 8)
    pen.text((margin, top + rows * cell + 12), "rows: what it is; columns: what it was taken for", INK, font)
    return page


def _upright(page: Image.Image, text: str, x: int, bottom: int) -> None:
    """Text that runs from ``bottom`` upwards."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    strip = Image.new("RGB", (round(font.getlength(text)) + 2, 14), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, INK, font)
    turned = strip.rotate(90, expand=True)
    page.paste(turned, (x - turned.width // 2, bottom - turned.height))
