package gdposr

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.junit.Assert.assertEquals
import org.junit.Test

/** The test vector of docs/noise.md. */
class NoiseTest {
    private class Value(val seed: String, val sample: Long, val y: Long, val x: Long, val channel: Int, val bits: String)

    private val values = listOf(
        Value("0", 0, 0, 0, 0, "be82fa50"),
        Value("0", 0, 0, 0, 3, "3e88fdeb"),
        Value("0", 0, 1, 2, 1, "3d88e706"),
        Value("1", 0, 0, 0, 0, "3f9d2c14"),
        Value("0", 1, 0, 0, 0, "bf6b60bd"),
        Value("0", 0, 7, 7, 0, "c0477b70"),
        Value("0", 0, 3, 15, 1, "c05adddd"), // a tail: the logarithm
        Value("0", 0, 11, 4, 0, "4024a07a"),
        Value("4294967296", 0, 0, 0, 0, "40193b1a"), // a seed above 32 bits
        Value("20260325", 3, 123, 456, 5, "bfddd22e"),
        Value("18446744073709551615", 4294967295, 4294967295, 4294967295, 7, "3ea846d3")
    )

    @Test
    fun singleValues() {
        for (v in values) {
            val seed = java.lang.Long.parseUnsignedLong(v.seed)
            val value = Noise.field(seed, v.sample, v.y, v.x, 1, 1, v.channel + 1)[v.channel]
            assertEquals(v.bits, String.format("%08x", value.toRawBits()))
        }
    }

    @Test
    fun wholeField() {
        val field = Noise.field(20260325, 3, 100, 200, 64, 48, 6)
        val bytes = ByteBuffer.allocate(4 * field.size).order(ByteOrder.LITTLE_ENDIAN)
        field.forEach { bytes.putFloat(it) }
        val digest = MessageDigest.getInstance("SHA-256").digest(bytes.array())
        val hex = digest.joinToString("") { String.format("%02x", it.toInt() and 255) }
        assertEquals("a3107ca9b3cf45998086d6afcf386ea9fc329c8ba5d9d83b4f099fd128e3fb27", hex)
    }
}
