package gdposr

/** The facts about the built-in model that the code needs. Each is a value of the bundle's manifest.json, where its name is given. */
object Model {
    /** `scale`: SR pixels for each LR pixel, along one side. */
    const val SCALE = 4

    /** `size.multiple_of`: windows begin at multiples of it, and so are their sides. */
    const val MULTIPLE_OF = 1

    /** `size.minimum`: LR pixels, the shortest side of a window. */
    const val MINIMUM = 8

    /** `size.context`: LR pixels that a value of the result depends on, in each direction. */
    const val CONTEXT = 29

    /** `noise.version`, see docs/noise.md. */
    const val NOISE_VERSION = 1

    /** `noise.channels`. */
    const val NOISE_CHANNELS = 4

    /** `noise.downscale`: LR pixels for each noise cell, along one side. */
    const val NOISE_CELL = 1

    /** `encoder.inputs` and `encoder.outputs`. */
    const val IMAGE = "image"
    val FEATURES = listOf("features", "base")

    /** `generator.inputs`, which are the features and this, and `generator.outputs`. */
    const val NOISE = "noise"
    const val RESULT = "sr"

    /** `graphs.int8`: the files that go into the app. */
    const val ENCODER_FILE = "encoder.int8.onnx"
    const val GENERATOR_FILE = "generator.int8.onnx"

    /** `probe`: a small photo, what the fp32 model makes of it with this seed and sample 0, and the PSNR that a precision owes, in dB. */
    const val PROBE_INPUT_FILE = "probe_lr.png"
    const val PROBE_OUTPUT_FILE = "probe_sr.png"
    const val PROBE_SEED = 7L
    val PROBE_FLOOR_DB = mapOf("fp32" to 50.0, "fp16" to 45.0, "int8" to 32.0)
}
