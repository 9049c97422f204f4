"""The demonstration behind `make demo`: checkpoint -> bundle -> check -> a photo, upscaled with several seeds.

Without a photo of your own, an openly licensed one (the cat Chelsea, CC0, from scikit-image's wheel) is reduced fourfold and
compressed as JPEG, so that the original can be shown beside the results. Crops of three more such photos make a second sheet.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gdposr.batch.sheet import contact_sheet, to_rgb8
from gdposr.cli import main as command
from gdposr.console import OK, UsageError, say

# Name of the photo of scikit-image that is enlarged without PHOTO=.
SAMPLE_PHOTO = "chelsea"
# Photos in the public domain or under CC0 -> top and left of the crop.
CROPS = {"astronaut": (0, 130), "coffee": (60, 200), "rocket": (120, 260)}
# Side of a crop in pixels.
CROP = 224
# About the quality that phones and messengers use.
JPEG_QUALITY = 80
# Largest side in pixels. Of a larger photo the middle is taken, so that the demonstration stays short.
LARGEST = 512
# Height and width of a result over those of the photo.
SCALE = 4

# (h, w, 3) uint8 -> (4h, 4w, 3) uint8.
Peer = Callable[[np.ndarray], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("export/weights/pocket"), help="the student's weights"
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder of everything made here")
    parser.add_argument(
        "--photo", type=Path, help="a photo of your own (default: one that needs no download)"
    )
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds (default: 4)")
    parser.add_argument(
        "--peer-ncnn", type=Path, metavar="PARAM", help="another model for the sheets, as ncnn .param"
    )
    args = parser.parse_args(argv)
    # the photo, its original and the peer
    begin = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        small, original = own_photo(args.photo) if args.photo else sample_photo()
        peer = load_peer(args.peer_ncnn)
    except UsageError as error:
        say(f"error: {error}")
        return 2
    photo = args.out / "photo.png"
    Image.fromarray(small).save(photo)
    bundle = args.out / "pocket.gdposr"

    # a bundle from the checkpoint
    say(f"1/3 exporting {args.checkpoint} to {bundle}")
    code = command(["export", "--checkpoint", str(args.checkpoint), "--out", str(bundle)])
    if code != OK:
        return code
    say("2/3 checking hashes and running the probe")
    code = command(["verify", str(bundle)])
    if code != OK:
        return code
    # a picture for each seed
    say(f"3/3 upscaling {photo} ({small.shape[1]}x{small.shape[0]}) with {args.seeds} seeds")
    pictures = []
    for seed in range(args.seeds):
        picture = args.out / f"photo_x{SCALE}_seed{seed}.png"
        code = command(
            ["upscale", str(photo), "-o", str(picture), "--seed", str(seed), "--bundle", str(bundle)]
        )
        if code != OK:
            return code
        pictures.append(picture)
    # sheets that show them side by side
    sheet = args.out / "sheet.png"
    samples = [np.asarray(Image.open(picture)) for picture in pictures]
    Image.fromarray(side_by_side(small, samples, original, peer)).save(sheet)
    crops = args.out / "crops.png"
    if not args.photo:
        Image.fromarray(crops_sheet(bundle, peer)).save(crops)

    # paths
    seconds = time.perf_counter() - begin
    lines = [
        "the pictures:",
        f"  {sheet}  (everything side by side: look at this one first)",
        f"  {photo}  (the input)",
        *([] if args.photo else [f"  {crops}  (crops of other photos)"]),
    ]
    lines += [f"  {picture}" for picture in pictures]
    lines += [
        "upscale your own, from here:",
        f"  {sys.executable} -m gdposr upscale YOUR_PHOTO.jpg -o big.png --bundle {bundle}",
    ]
    (args.out / "where.txt").write_text("\n".join(lines) + "\n")
    say(f"done in {seconds:.1f} s")
    return OK


def load_peer(param: Path | None) -> Peer | None:
    """The model in an ncnn file as a function of pictures. None without a file."""
    if param is None:
        return None
    from gdposr.bench.peers import load_peers, on_pictures

    return on_pictures(next(iter(load_peers([], param, threads=2).values())))


def open_photo(name: str) -> np.ndarray:
    """A photo from scikit-image, (H, W, 3) uint8, cropped to multiples of 8 pixels."""
    try:
        from skimage import data
    except ImportError:
        raise UsageError(
            'the demonstration photo needs scikit-image: pip install "gdposr[demo]", or give --photo'
        ) from None
    original = getattr(data, name)()
    height, width = (side // (2 * SCALE) * (2 * SCALE) for side in original.shape[:2])
    return original[:height, :width]


def sample_photo() -> tuple[np.ndarray, np.ndarray]:
    """The small, JPEG-compressed photo and its original, both (H, W, 3) uint8."""
    original = open_photo(SAMPLE_PHOTO)
    return like_a_phone(original), original


def own_photo(path: Path) -> tuple[np.ndarray, None]:
    """The user's photo, (H, W, 3) uint8, or only its middle if it is large. There is no original."""
    from runtime.errors import ImageError
    from runtime.image.read.decode import read_photo

    try:
        pixels = to_rgb8(read_photo(path, notify=say).pixels)
    except ImageError as error:
        raise UsageError(str(error)) from error
    height, width = pixels.shape[:2]
    if max(height, width) > LARGEST:
        say(
            f"{path} is {width}x{height}: the demonstration takes the middle {LARGEST} pixels; `gdposr upscale` takes it all"
        )
    top, left = max(0, (height - LARGEST) // 2), max(0, (width - LARGEST) // 2)
    return pixels[top : top + LARGEST, left : left + LARGEST], None


def like_a_phone(original: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H/4, W/4, 3) uint8 with the traces of JPEG compression."""
    height, width = original.shape[:2]
    small = Image.fromarray(original).resize((width // SCALE, height // SCALE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(stream).convert("RGB"))


def side_by_side(
    small: np.ndarray, samples: Sequence[np.ndarray], original: np.ndarray | None, peer: Peer | None = None
) -> np.ndarray:
    """Bicubic, the peer, the samples and the original on one sheet, all but the input of one size.

    small: the input.
    samples: by seeds 0, 1, ...
    original: None: leave it out.
    peer: another model; None: leave it out.
    """
    named = {f"seed {seed}": sample for seed, sample in enumerate(samples)}
    shown = versions(small, named, original, peer)
    judged = [k for k, label in enumerate(shown) if label in named]
    return contact_sheet(
        list(shown.values()), list(shown), columns=3 if len(shown) > 4 else 2, detail_by=judged
    )


def versions(
    small: np.ndarray, samples: dict[str, np.ndarray], original: np.ndarray | None, peer: Peer | None
) -> dict[str, np.ndarray]:
    """Label -> picture, all of one size, in the order shown.

    small, original, peer: as in `side_by_side`.
    samples: our pictures by label.
    """
    height, width = next(iter(samples.values())).shape[:2]
    bicubic = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return {
        "bicubic": bicubic,
        **({"realesr-general-x4v3": peer(small)} if peer else {}),
        **samples,
        **({} if original is None else {"original": original}),
    }


def crops_sheet(bundle: Path, peer: Peer | None) -> np.ndarray:
    """A row for each photo of `CROPS`: bicubic, the peer, two seeds, the original. Whole photos are enlarged, then cropped."""
    from gdposr import Upscaler

    rows: dict[str, np.ndarray] = {}
    with Upscaler(bundle) as upscaler:
        for name, (top, left) in CROPS.items():
            original = open_photo(name)
            small = like_a_phone(original)
            first, second = upscaler.up(small, seed=0)[0], upscaler.up(small, seed=1)[0]
            shown = versions(small, {"seed 0": first, "seed 1": second}, original, peer)
            window = slice(top, top + CROP), slice(left, left + CROP)
            rows |= {f"{name}, {label}": picture[window] for label, picture in shown.items()}
    return contact_sheet(list(rows.values()), list(rows), columns=len(rows) // len(CROPS))


if __name__ == "__main__":
    raise SystemExit(main())
