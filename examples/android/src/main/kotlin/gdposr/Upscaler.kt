package gdposr

/**
 * Makes a photo four times as large.
 *
 * window: LR pixels a side that the model is shown at once. More is faster and takes more memory; the result is the same.
 */
class Upscaler(private val graphs: Graphs, private val window: Int = 158) {
    /**
     * One picture for each sample. Slow: call it off the main thread.
     *
     * seed: its 64 bits. samples: which versions, from 0 to 2^32 - 1. The same photo, seed and sample give the same picture.
     */
    fun upscale(photo: Picture, seed: Long, samples: LongRange = 0L..0L): List<Picture> {
        val width = photo.width * Model.SCALE
        val height = photo.height * Model.SCALE
        val results = samples.map { Picture(width, height, IntArray(width * height)) }
        for (rows in Tiles.spans(photo.height, window)) for (columns in Tiles.spans(photo.width, window)) {
            graphs.encode(photo.window(rows, columns), rows.side, columns.side) { features ->
                samples.forEachIndexed { number, sample ->
                    val noise = noise(seed, sample, rows, columns)
                    val sr = graphs.generate(features, noise, rows.side / Model.NOISE_CELL, columns.side / Model.NOISE_CELL)
                    results[number].place(sr, rows, columns)
                }
            }
        }
        return results
    }

    /** A window's noise. Its cells are counted in the whole photo, so that the texture does not depend on the windows. */
    private fun noise(seed: Long, sample: Long, rows: Span, columns: Span): FloatArray {
        val cell = Model.NOISE_CELL
        return Noise.field(
            seed, sample,
            (rows.window / cell).toLong(), (columns.window / cell).toLong(),
            rows.side / cell, columns.side / cell, Model.NOISE_CHANNELS
        )
    }
}
