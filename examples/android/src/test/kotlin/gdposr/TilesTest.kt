package gdposr

import org.junit.Assert.assertEquals
import org.junit.Test

class TilesTest {
    @Test
    fun oddSideInTwoWindows() {
        assertEquals(listOf(Span(0, 128, 0, 102), Span(76, 128, 102, 203)), Tiles.spans(203, 128))
    }

    @Test
    fun photoSmallerThanTheWindow() {
        assertEquals(listOf(Span(0, 58, 0, 57)), Tiles.spans(57, 180))
        assertEquals(listOf(Span(0, 16, 0, 5)), Tiles.spans(5, 180))
    }
}
