// Runs the examples for tests/test_examples_kotlin.py.
package gdposr

import ai.onnxruntime.Wire
import android.graphics.Bitmap

fun main(arguments: Array<String>) = when (arguments[0]) {
    "tests" -> tests()
    "upscale" -> upscale(arguments.drop(1))
    "self-test" -> selfTest(arguments.drop(1))
    else -> throw IllegalArgumentException(arguments[0])
}

/** Runs the unit tests; writes "done" and the names of those that passed. */
private fun tests() {
    val passed = mutableListOf<String>()
    for (test in listOf(NoiseTest(), TilesTest(), PictureTest())) {
        for (method in test.javaClass.declaredMethods.filter { it.isAnnotationPresent(org.junit.Test::class.java) }) {
            method.invoke(test)
            passed += "${test.javaClass.simpleName}.${method.name}"
        }
    }
    Wire.output.writeUTF("done")
    Wire.output.writeBytes(passed.sorted().joinToString(" "))
    Wire.output.flush()
}

/** width height window seed samples: reads the photo's pixels and runs the graphs; writes "done" and the pixels of each picture. */
private fun upscale(words: List<String>) {
    val (width, height, window) = words.take(3).map { it.toInt() }
    val photo = read(width, height)
    withGraphs { graphs ->
        val seed = java.lang.Long.parseUnsignedLong(words[3])
        val versions = Upscaler(graphs, window).upscale(photo, seed, 0L until words[4].toLong())
        Wire.output.writeUTF("done")
        versions.forEach { write(it) }
    }
}

/** side: reads the probe's two pictures and runs the graphs; writes "done" and whether the self-test passes. */
private fun selfTest(words: List<String>) {
    val side = words[0].toInt()
    val (probe, expected) = Pair(read(side, side), read(side * Model.SCALE, side * Model.SCALE))
    withGraphs { graphs ->
        val passes = SelfTest.passes(Upscaler(graphs), probe, expected)
        Wire.output.writeUTF("done")
        Wire.output.writeBoolean(passes)
    }
}

private fun withGraphs(use: (Graphs) -> Unit) {
    Graphs(Model.ENCODER_FILE.toByteArray(), Model.GENERATOR_FILE.toByteArray(), threads = 1).use(use)
    Wire.output.flush()
}

private fun read(width: Int, height: Int): Picture {
    val pixels = IntArray(width * height) { Wire.input.readInt() }
    return Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888).toPicture()
}

private fun write(picture: Picture) {
    val bitmap = picture.toBitmap()
    val pixels = IntArray(bitmap.width * bitmap.height)
    bitmap.getPixels(pixels, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
    pixels.forEach { Wire.output.writeInt(it) }
}
