package gdposr

/** Pixels 0xAARRGGBB, sRGB, upright, row by row from the top, as Bitmap.getPixels gives them. Alpha is not read; results are opaque. */
class Picture(val width: Int, val height: Int, val argb: IntArray) {
    init {
        require(width > 0 && height > 0 && argb.size == width * height) {
            "picture: expected $width x $height pixels, got ${argb.size}"
        }
    }

    /** What the encoder is shown: (3, rows.side, columns.side) in [0, 1]. Beyond the photo its last row and column are repeated. */
    fun window(rows: Span, columns: Span): FloatArray {
        val area = rows.side * columns.side
        val values = FloatArray(3 * area)
        for (y in 0 until rows.side) {
            val row = minOf(rows.window + y, height - 1) * width
            for (x in 0 until columns.side) {
                val color = argb[row + minOf(columns.window + x, width - 1)]
                val place = y * columns.side + x
                values[place] = (color shr 16 and 255) / 255f
                values[area + place] = (color shr 8 and 255) / 255f
                values[2 * area + place] = (color and 255) / 255f
            }
        }
        return values
    }

    /** Puts the core of a result into this picture, clipped and rounded to 8 bits. sr: row by row, (3, SCALE rows.side, SCALE columns.side). */
    fun place(sr: FloatArray, rows: Span, columns: Span) {
        val scale = Model.SCALE
        val line = columns.side * scale
        val area = rows.side * scale * line
        for (y in rows.start * scale until rows.end * scale) for (x in columns.start * scale until columns.end * scale) {
            val place = (y - rows.window * scale) * line + x - columns.window * scale
            var color = 255
            for (channel in 0..2) {
                val value = sr[channel * area + place]
                check(!value.isNaN() && !value.isInfinite()) { "expected finite values, got $value; use another execution provider" }
                color = (color shl 8) or (value.coerceIn(0f, 1f) * 255f + 0.5f).toInt()
            }
            argb[y * width + x] = color
        }
    }
}
