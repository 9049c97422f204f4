"""A pair as one picture: the input, below it the two enlargements, and below these both again at twice the size."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels around and between pictures, and for the text above a picture.
GAP, LABEL = 12, 24
# Pixels.
FONT_SIZE = 16
# Colours of text and background.
INK, PAPER = (30, 30, 30), (238, 238, 236)


def pair_sheet(number: int, source: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(h, w, 3) input and two (H, W, 3) enlargements, all uint8 -> one (H', W', 3) uint8 picture.

    number: of the pair, written on the sheet.
    source: the input, shown at (H, W), enlarged by repeating pixels.
    left, right: the enlargements.

    Labels say INPUT, LEFT, RIGHT and the pair's number, nothing else.
    """
    height, width = left.shape[:2]
    middle = GAP + 2 * width + GAP // 2
    sheet = Image.new("RGB", (3 * GAP + 4 * width, 4 * GAP + 3 * LABEL + 4 * height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)

    def put(label: str, pixels: np.ndarray, x: int, y: int, size: tuple[int, int]) -> None:
        pen.text((x, y), label, fill=INK, font=font)
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y + LABEL))

    pen.text((GAP, GAP), str(number), fill=INK, font=font)
    put("INPUT", source, middle - width // 2, GAP, (width, height))
    # at 1x the two touch, so that they are easy to compare
    top = 2 * GAP + LABEL + height
    put("LEFT", left, middle - GAP // 2 - width, top, (width, height))
    put("RIGHT", right, middle + GAP - GAP // 2, top, (width, height))
    top += GAP + LABEL + height
    put("LEFT", left, GAP, top, (2 * width, 2 * height))
    put("RIGHT", right, 2 * GAP + 2 * width, top, (2 * width, 2 * height))
    return np.asarray(sheet)
