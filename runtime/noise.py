"""The noise field: a pure function of (seed, sample, y, x, channel), equal bit for bit on every machine.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives 32 random bits for each cell and channel.
The inverse normal distribution function (P. J. Acklam's rational approximation, relative error below 1.2e-9) turns them into a normal
deviate. After the integers only + - * / and sqrt of float64 are used, which IEEE 754 rounds correctly, and frexp, which is exact. The
logarithm is computed here, because libraries differ in its last bit.

`docs/noise.md` has pseudo-code and a test vector for other languages. This is noise version 1 of the bundle manifest. Its values
never change.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from .checks import setting

# As a manifest states it.
NOISE_VERSION: Final = 1
# Rounds of Philox4x32-10.
ROUNDS: Final = 10
# Multipliers of Philox.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
# Increments of its key: golden ratio, sqrt(3) - 1.
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
# The low half of a product, and the distance of its high half in bits.
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
# Cells of four channels computed at a time, so that temporaries stay in the processor's cache.
_BAND_CELLS: Final = 1 << 13

# Acklam's coefficients, highest power first.
_A = (-3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02,
      1.383577518672690e02, -3.066479806614716e01, 2.506628277459239e00)  # fmt: skip
_B = (-5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02,
      6.680131188771972e01, -1.328068155288572e01, 1.0)  # fmt: skip
_C = (-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e00,
      -2.549732539343734e00, 4.374664141464968e00, 2.938163982698783e00)  # fmt: skip
_D = (7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00,
      3.754408661907416e00, 1.0)  # fmt: skip
# Below this probability, and above 1 minus it, the tail formula holds.
_TAIL = 0.02425
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
# 1/21, 1/19, ... 1/3, 1: atanh(s) / s in powers of s^2.
_LOG_SERIES = tuple(1.0 / k for k in range(21, 0, -2))


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32. counter: (..., 4) uint32, key: (2,) uint32 -> (..., 4) uint32."""
    words = np.asarray(counter, dtype=np.uint32)
    c0, c1, c2, c3 = (words[..., i].astype(np.uint64) for i in range(4))
    c0, c1, c2, c3 = _rounds(c0, c1, c2, c3, int(key[0]), int(key[1]))
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def noise_field(
    seed: int, sample: int, height: int, width: int, *, channels: int = 4, y0: int = 0, x0: int = 0
) -> NDArray[np.float32]:
    """Standard normal deviates of a window of the field: (channels, height, width) float32.

    seed: in [0, 2**64).
    sample: in [0, 2**32).
    height, width: of the window, in noise cells.
    channels: independent fields, one above the other.
    y0, x0: where the window begins in the whole picture, in noise cells. y0 + height and x0 + width are at most 2**32.

    A window equals the same slice of the full field.
    """
    seed, sample = setting("seed", seed, 0, 2**64 - 1), setting("sample", sample, 0, 2**32 - 1)
    height, width = setting("height", height, 0, 2**32), setting("width", width, 0, 2**32)
    channels = setting("channels", channels, 1, 2**32)
    y0, x0 = setting("y0", y0, 0, 2**32 - height), setting("x0", x0, 0, 2**32 - width)

    field = np.empty((channels, height, width), dtype=np.float32)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    x = np.arange(x0, x0 + width, dtype=np.uint64)[None, :]
    rows = max(1, _BAND_CELLS // max(1, width))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        y = np.arange(y0 + top, y0 + bottom, dtype=np.uint64)[:, None]
        for group in range(0, channels, 4):
            words = _rounds(x, y, np.uint64(group // 4), np.uint64(sample), key0, key1)
            several = np.stack(words[: channels - group])  # one call for all, because each call takes time
            field[group : group + len(several), top:bottom] = normal_from_word(several)
    return field


def normal_from_word(word: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    """Normal deviate of the probability (word + 0.5) / 2**32. word: 32-bit values of any unsigned type -> float64."""
    p = (word.astype(np.float64) + 0.5) * (1.0 / 4294967296.0)  # exact: 33 significant bits, a power of two
    q = p - 0.5
    r = q * q
    deviate = _polynomial(_A, r) * q / _polynomial(_B, r)
    half = np.minimum(p, 1.0 - p)  # distance to the nearer end; exact
    tail = np.flatnonzero(half < _TAIL)
    t = np.sqrt(-2.0 * log(half.flat[tail]))
    low = _polynomial(_C, t) / _polynomial(_D, t)  # the negative side
    deviate.flat[tail] = np.where(q.flat[tail] < 0.0, low, -low)
    return deviate


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of positive normal float64, by 2 atanh((m-1)/(m+1)) + e ln 2: the same bits everywhere."""
    mantissa, exponent = np.frexp(x)  # x = mantissa * 2**exponent, mantissa in [0.5, 1)
    small = mantissa < _SQRT_HALF
    m = np.where(small, mantissa * 2.0, mantissa)  # in [sqrt(1/2), sqrt(2))
    e = exponent.astype(np.float64) - small
    s = (m - 1.0) / (m + 1.0)
    return 2.0 * s * _polynomial(_LOG_SERIES, s * s) + e * _LN2


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horner's rule: one multiplication and one addition a step, each rounded, never fused."""
    value = coefficients[0] * x
    value += coefficients[1]
    for coefficient in coefficients[2:]:
        value *= x
        value += coefficient
    return value


def _rounds(c0, c1, c2, c3, key0: int, key1: int):  # type: ignore[no-untyped-def]
    """The rounds of Philox4x32.

    c0, c1, c2, c3: the words of the counter, 32-bit values in uint64 arrays that broadcast against each other.
    key0, key1: the words of the key.
    """
    for _ in range(ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0 = (p1 >> _32) ^ c1 ^ np.uint64(key0)
        c2 = (p0 >> _32) ^ c3 ^ np.uint64(key1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        key0, key1 = (key0 + _W0) & 0xFFFFFFFF, (key1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3
