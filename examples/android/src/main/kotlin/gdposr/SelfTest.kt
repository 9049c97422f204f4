package gdposr

/** Runs the bundle's probe. An accelerator may compute something else without an error; then use another one, or the CPU. */
object SelfTest {
    /** probe, expected: the pictures of the bundle's two probe files. precision: of the graphs in use. */
    fun passes(upscaler: Upscaler, probe: Picture, expected: Picture, precision: String = "int8"): Boolean {
        val result = upscaler.upscale(probe, Model.PROBE_SEED).first()
        return psnr(result, expected) >= Model.PROBE_FLOOR_DB.getValue(precision)
    }

    /** dB over red, green and blue; equal pictures give infinity. */
    fun psnr(a: Picture, b: Picture): Double {
        require(a.width == b.width && a.height == b.height) {
            "expected pictures of one size, got ${a.width} x ${a.height} and ${b.width} x ${b.height}"
        }
        var sum = 0.0
        for (i in a.argb.indices) for (shift in intArrayOf(16, 8, 0)) {
            val difference = ((a.argb[i] shr shift and 255) - (b.argb[i] shr shift and 255)).toDouble()
            sum += difference * difference
        }
        return 10 * Math.log10(255.0 * 255.0 / (sum / (3.0 * a.argb.size)))
    }
}
