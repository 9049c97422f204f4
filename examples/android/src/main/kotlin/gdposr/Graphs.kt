package gdposr

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.FloatBuffer

/** The two graphs in ONNX Runtime. encoder, generator: the content of the .onnx files. threads: of one model call. */
class Graphs(encoder: ByteArray, generator: ByteArray, threads: Int) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment().apply { setTelemetry(false) }
    private val options = OrtSession.SessionOptions().apply { setIntraOpNumThreads(threads) }
    private val encoder = environment.createSession(encoder, options)
    private val generator = environment.createSession(generator, options)

    /** Runs the encoder on (3, height, width), and gives its outputs to `use` before they are released. */
    fun encode(image: FloatArray, height: Int, width: Int, use: (OrtSession.Result) -> Unit) {
        tensor(image, 3, height, width).use { encoder.run(mapOf(Model.IMAGE to it)).use(use) }
    }

    /** Runs the generator on the encoder's outputs and noise (channels, height, width): the result, row by row, three channels. */
    fun generate(features: OrtSession.Result, noise: FloatArray, height: Int, width: Int): FloatArray =
        tensor(noise, Model.NOISE_CHANNELS, height, width).use { field ->
            val inputs = Model.FEATURES.associateWith { tensorOf(features, it) } + (Model.NOISE to field)
            generator.run(inputs).use { output ->
                val values = tensorOf(output, Model.RESULT).floatBuffer
                FloatArray(values.remaining()).also { values.get(it) }
            }
        }

    override fun close() {
        generator.close()
        encoder.close()
        options.close()
    }

    private fun tensor(values: FloatArray, channels: Int, height: Int, width: Int): OnnxTensor {
        val shape = longArrayOf(1, channels.toLong(), height.toLong(), width.toLong())
        return OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), shape)
    }

    private fun tensorOf(outputs: OrtSession.Result, name: String) = outputs.get(name).get() as OnnxTensor
}
