package gdposr

import org.junit.Assert.assertTrue
import org.junit.Test

/** A small picture through both graphs. */
class PictureTest {
    @Test
    fun int8() {
        val case = vectors("picture.json")
        val sample = case.getLong("sample")
        val result = Graphs(resource(Model.ENCODER_FILE), resource(Model.GENERATOR_FILE), threads = 1).use { graphs ->
            Upscaler(graphs).upscale(picture(case.texts("image")), case.seed(), sample..sample).first()
        }
        val psnr = SelfTest.psnr(result, picture(case.texts("fp32")))
        assertTrue("$psnr dB", psnr >= case.getDouble("int8_floor_db"))
    }

    /** rows: six hex digits a pixel. */
    private fun picture(rows: List<String>): Picture {
        val pixels = rows.flatMap { row -> row.chunked(6) { it.toString().toInt(16) } }
        return Picture(rows[0].length / 6, rows.size, pixels.toIntArray())
    }
}
