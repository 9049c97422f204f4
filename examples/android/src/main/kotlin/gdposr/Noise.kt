package gdposr

/**
 * The noise field of docs/noise.md, version 1: a pure function of (seed, sample, y, x, channel), with the bits of the Python runtime.
 *
 * Philox4x32-10 gives 32 random bits, Acklam's rational approximation turns them into a normal deviate. The JVM and ART round every
 * operation on Double by itself, as the definition asks; the logarithm is computed here because libraries differ in its last bit.
 */
object Noise {
    // Acklam's coefficients, highest power first
    private val A = doubleArrayOf(
        -3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02,
        1.383577518672690e02, -3.066479806614716e01, 2.506628277459239e00
    )
    private val B = doubleArrayOf(
        -5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02,
        6.680131188771972e01, -1.328068155288572e01, 1.0
    )
    private val C = doubleArrayOf(
        -7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e00,
        -2.549732539343734e00, 4.374664141464968e00, 2.938163982698783e00
    )
    private val D = doubleArrayOf(
        7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00, 3.754408661907416e00, 1.0
    )
    private val LOG_SERIES = DoubleArray(11) { 1.0 / (21 - 2 * it) } // 1/21, 1/19, ... 1/3, 1
    private const val LN2 = 0.6931471805599453
    private const val SQRT_HALF = 0.7071067811865476
    private const val TAIL = 0.02425 // below this probability, and above 1 - it, the tail formula holds
    private const val ROUNDS = 10
    private const val M0 = 0xD2511F53L // multipliers
    private const val M1 = 0xCD9E8D57L
    private const val W0 = 0x9E3779B9L // key increments
    private const val W1 = 0xBB67AE85L
    private const val LOW = 0xFFFFFFFFL

    /**
     * Standard normal deviates, (channels, height, width) row by row.
     *
     * seed: its 64 bits, so that -1 stands for 2^64 - 1. sample: 0 to 2^32 - 1. y0, x0: the first cell, counted in the whole photo.
     */
    fun field(seed: Long, sample: Long, y0: Long, x0: Long, height: Int, width: Int, channels: Int): FloatArray {
        for ((name, first, count) in listOf(Triple("sample", sample, 1), Triple("y0", y0, height), Triple("x0", x0, width))) {
            require(first in 0..LOW + 1 - count) { "$name: expected a number from 0 to ${LOW + 1 - count}, got $first" }
        }
        val values = FloatArray(channels * height * width)
        val words = LongArray(4)
        for (group in 0 until channels step 4) for (y in 0 until height) for (x in 0 until width) {
            philox(x0 + x, y0 + y, (group / 4).toLong(), sample, seed, words)
            for (lane in 0 until minOf(4, channels - group)) {
                values[((group + lane) * height + y) * width + x] = normal(words[lane]).toFloat()
            }
        }
        return values
    }

    /** Philox4x32 of the counter (i0, i1, i2, i3) and the key seed. Counter and result are 32-bit numbers, kept in Longs. */
    fun philox(i0: Long, i1: Long, i2: Long, i3: Long, seed: Long, out: LongArray) {
        var c0 = i0
        var c1 = i1
        var c2 = i2
        var c3 = i3
        var k0 = seed and LOW
        var k1 = seed ushr 32
        repeat(ROUNDS) {
            val p0 = M0 * c0 // 64 bits without a sign: ushr reads them so
            val p1 = M1 * c2
            c0 = (p1 ushr 32) xor c1 xor k0
            c1 = p1 and LOW
            c2 = (p0 ushr 32) xor c3 xor k1
            c3 = p0 and LOW
            k0 = (k0 + W0) and LOW
            k1 = (k1 + W1) and LOW
        }
        out[0] = c0
        out[1] = c1
        out[2] = c2
        out[3] = c3
    }

    /** Normal deviate of the probability (word + 0.5) / 2^32. */
    fun normal(word: Long): Double {
        val p = (word.toDouble() + 0.5) / 4294967296.0
        val q = p - 0.5
        val half = minOf(p, 1.0 - p) // distance to the nearer end
        if (half < TAIL) {
            val t = Math.sqrt(-2.0 * log(half))
            val low = polynomial(C, t) / polynomial(D, t)
            return if (q < 0.0) low else -low
        }
        val r = q * q
        return polynomial(A, r) * q / polynomial(B, r)
    }

    /** Natural logarithm of a positive normal number: 2 atanh((m - 1) / (m + 1)) + e ln 2. */
    private fun log(v: Double): Double {
        var e = Math.getExponent(v) + 1
        var m = Math.scalb(v, -e) // v = m * 2^e, m in [0.5, 1)
        if (m < SQRT_HALF) {
            m *= 2.0
            e -= 1
        }
        val s = (m - 1.0) / (m + 1.0)
        return 2.0 * s * polynomial(LOG_SERIES, s * s) + e * LN2
    }

    private fun polynomial(coefficients: DoubleArray, v: Double): Double {
        var value = coefficients[0]
        for (i in 1 until coefficients.size) value = value * v + coefficients[i]
        return value
    }
}
