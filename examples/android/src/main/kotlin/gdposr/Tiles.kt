package gdposr

/** Along one side of the photo, in LR pixels: the model is shown window..<window + side, and its result is kept for start..<end. */
data class Span(val window: Int, val side: Int, val start: Int, val end: Int)

/**
 * Cuts a photo into windows that the model is shown and cores, the parts of their results that are kept.
 *
 * A value of the result depends on what is at most [Model.CONTEXT] pixels away. So a core ends that far inside its window, except at
 * the edge of the photo, and cores meet without a seam. Nothing is blended.
 */
object Tiles {
    /** The smallest window that leaves a core. */
    const val SMALLEST = 2 * Model.CONTEXT + Model.MULTIPLE_OF

    /** The spans of a photo's side. window: LR pixels that the model is shown, where the photo has as many. */
    fun spans(length: Int, window: Int): List<Span> {
        require(window >= SMALLEST && window % Model.MULTIPLE_OF == 0) {
            "window: expected a multiple of ${Model.MULTIPLE_OF} from $SMALLEST on, got $window"
        }
        val whole = (length + Model.MULTIPLE_OF - 1) / Model.MULTIPLE_OF * Model.MULTIPLE_OF
        val side = maxOf(minOf(window, whole), Model.MINIMUM)
        val spans = mutableListOf<Span>()
        var done = 0
        while (done < length) {
            val first = minOf(maxOf(0, done - Model.CONTEXT), maxOf(0, whole - side))
            val end = if (first + side >= whole) length else first + side - Model.CONTEXT
            spans += Span(first, side, done, end)
            done = end
        }
        return spans
    }
}
