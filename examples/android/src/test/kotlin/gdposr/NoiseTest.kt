package gdposr

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class NoiseTest {
    private val vectors = vectors("noise.json")

    @Test
    fun philox() {
        for (case in vectors.cases("philox")) {
            val (counter, key, result) = listOf("counter", "key", "result").map { case.texts(it).map { word -> word.toLong(16) } }
            val words = LongArray(4)
            Noise.philox(counter[0], counter[1], counter[2], counter[3], (key[1] shl 32) or key[0], words)
            assertEquals(result, words.toList())
        }
    }

    @Test
    fun singleValues() {
        for (case in vectors.cases("values")) {
            val channel = case.getInt("channel")
            val (sample, y, x) = listOf("sample", "y", "x").map { case.getLong(it) }
            val value = Noise.field(case.seed(), sample, y, x, 1, 1, channel + 1)[channel]
            assertEquals(case.getString("bits"), String.format("%08x", value.toRawBits()))
        }
    }

    @Test
    fun wholeFields() {
        for (case in vectors.cases("fields")) {
            val (sample, y0, x0) = listOf("sample", "y0", "x0").map { case.getLong(it) }
            val (height, width, channels) = listOf("height", "width", "channels").map { case.getInt(it) }
            val field = Noise.field(case.seed(), sample, y0, x0, height, width, channels)
            val bytes = ByteBuffer.allocate(4 * field.size).order(ByteOrder.LITTLE_ENDIAN)
            field.forEach { bytes.putFloat(it) }
            val digest = MessageDigest.getInstance("SHA-256").digest(bytes.array())
            assertEquals(case.getString("sha256"), digest.joinToString("") { String.format("%02x", it) })
        }
    }

    @Test
    fun refused() {
        for (case in vectors.cases("refused")) {
            val settings = mutableMapOf("seed" to "0", "sample" to "0", "y0" to "0", "x0" to "0")
            settings[case.getString("setting")] = case.getString("value")
            val (seed, sample, y0, x0) = settings.values.toList()
            val error = runCatching {
                Noise.field(java.lang.Long.parseUnsignedLong(seed), sample.toLong(), y0.toLong(), x0.toLong(), 1, 1, 1)
            }.exceptionOrNull()
            assertTrue("$case", error is IllegalArgumentException)
        }
    }
}
