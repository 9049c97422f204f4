package gdposr

import org.junit.Assert.assertEquals
import org.junit.Test

class TilesTest {
    @Test
    fun sideInTwoWindows() {
        assertEquals(listOf(Span(0, 128, 0, 113), Span(75, 128, 113, 203)), Tiles.spans(203, 128))
    }

    @Test
    fun photoSmallerThanTheWindow() {
        assertEquals(listOf(Span(0, 57, 0, 57)), Tiles.spans(57, 158))
        assertEquals(listOf(Span(0, 8, 0, 5)), Tiles.spans(5, 158))
    }
}
