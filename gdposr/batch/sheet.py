"""A labelled contact sheet of several versions of one photo.

Each version is shown whole. If it must be reduced to fit its cell, the versions look alike, so below it stands a detail pixel by pixel,
taken where the versions differ most.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels between cells, and for the text above a cell, whose letters are so many pixels high.
GAP, LABEL, FONT_SIZE = 8, 26, 16
# RGB of text and of the ground.
INK, PAPER = (30, 30, 30), (246, 246, 244)


def contact_sheet(
    pictures: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    cell: int = 512,
    columns: int | None = None,
    detail_by: Sequence[int] | None = None,
) -> np.ndarray:
    """Versions of one photo, all of one size, (H, W, 1..4) uint8 or uint16 -> one (H', W', 3) uint8 picture.

    pictures: in the order shown.
    labels: one for each.
    cell: longest side of a shown picture.
    columns: None: about a square.
    detail_by: indices of the pictures that decide where the detail is taken. Leave out those that are not samples, such as an
        interpolated one. None: all.
    """
    if not pictures or len(pictures) != len(labels):
        raise ValueError(
            f"expected one label per picture and at least one, got {len(pictures)} and {len(labels)}"
        )
    shots = [to_rgb8(picture) for picture in pictures]
    if len({shot.shape for shot in shots}) != 1:
        raise ValueError(f"expected pictures of one size, got {sorted({shot.shape for shot in shots})}")
    height, width = shots[0].shape[:2]
    shrink = min(1.0, cell / max(height, width))
    whole = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    detail = None
    if shrink < 1:
        judged = shots if detail_by is None else [shots[index] for index in detail_by]
        detail = most_varied(judged, min(height, whole[0]), min(width, whole[0]))
    columns = columns or (
        len(shots) if len(shots) < 4 else max(ceil(len(shots) ** 0.5), 3 if len(shots) > 4 else 2)
    )
    rows = ceil(len(shots) / columns)
    font = ImageFont.load_default(FONT_SIZE)
    cell_width = max(whole[0], *(2 + ceil(font.getlength(label)) for label in labels))
    cell_height = LABEL + whole[1] + (GAP + detail[1] - detail[0] if detail else 0)
    size = (GAP + columns * (cell_width + GAP), GAP + rows * (cell_height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (shot, label) in enumerate(zip(shots, labels, strict=True)):
        row, column = divmod(index, columns)
        left, top = GAP + column * (cell_width + GAP), GAP + row * (cell_height + GAP)
        pen.text((left + 2, top + 2), label, fill=INK, font=font)
        picture = Image.fromarray(shot)
        sheet.paste(
            picture if shrink == 1 else picture.resize(whole, Image.Resampling.LANCZOS), (left, top + LABEL)
        )
        if detail:
            y0, y1, x0, x1 = detail
            sheet.paste(Image.fromarray(shot[y0:y1, x0:x1]), (left, top + LABEL + whole[1] + GAP))
    return np.asarray(sheet)


def to_rgb8(picture: np.ndarray) -> np.ndarray:
    """(H, W[, 1..4]) uint8 or uint16 -> (H, W, 3) uint8; gray becomes RGB, transparent parts show the paper."""
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    colours, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[2] in (2, 4) else (pixels, None)
    colours = np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours
    if alpha is None:
        return np.ascontiguousarray(colours)
    cover = alpha.astype(np.float32) / 255
    return np.rint(colours * cover + np.asarray(PAPER, np.float32) * (1 - cover)).astype(np.uint8)


def most_varied(shots: Sequence[np.ndarray], height: int, width: int) -> tuple[int, int, int, int]:
    """The window (y0, y1, x0, x1) of the given size in which pictures (H, W, 3) uint8 differ most.

    For one picture, or equal ones: the window in which neighbouring pixels differ most.
    """
    gray = np.stack([shot.mean(axis=2, dtype=np.float32) for shot in shots])  # (N, H, W)
    energy = gray.var(axis=0)
    if not energy.any():
        energy[1:] += np.abs(np.diff(gray[0], axis=0))
        energy[:, 1:] += np.abs(np.diff(gray[0], axis=1))
    total = np.zeros((energy.shape[0] + 1, energy.shape[1] + 1))
    total[1:, 1:] = energy.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    sums = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(top) + height, int(left), int(left) + width
