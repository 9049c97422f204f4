package gdposr

import org.json.JSONArray
import org.junit.Assert.assertEquals
import org.junit.Test

class TilesTest {
    @Test
    fun spans() {
        for (case in vectors("tiles.json").cases("spans")) {
            val spans = Tiles.spans(case.getInt("length"), case.getInt("window"))
            val expected = case.getJSONArray("spans").list(JSONArray::getJSONArray).map { it.list(JSONArray::getInt) }
            assertEquals(expected, spans.map { listOf(it.window, it.side, it.start, it.end) })
        }
    }
}
