// Stands in for ONNX Runtime's Java library: the same names and types, and each run is handed to the process on the other end of
// standard input and output. A message holds the name of the graph's file and the arrays: name, rank, sizes, float32 values.
package ai.onnxruntime

import java.io.DataInputStream
import java.io.DataOutputStream
import java.nio.FloatBuffer
import java.util.Optional

object Wire {
    val input = DataInputStream(System.`in`.buffered())
    val output = DataOutputStream(System.out.buffered())
}

interface OnnxValue : AutoCloseable

class OnnxTensor private constructor(val values: FloatArray, val shape: LongArray) : OnnxValue {
    val floatBuffer: FloatBuffer get() = FloatBuffer.wrap(values.copyOf())

    override fun close() = Unit

    companion object {
        @JvmStatic
        fun createTensor(environment: OrtEnvironment, data: FloatBuffer, shape: LongArray): OnnxTensor {
            val values = FloatArray(data.remaining())
            data.get(values)
            check(values.size.toLong() == shape.reduce { a, b -> a * b })
            return OnnxTensor(values, shape)
        }
    }
}

class OrtEnvironment private constructor() {
    fun setTelemetry(send: Boolean) = Unit

    fun createSession(model: ByteArray, options: OrtSession.SessionOptions) = OrtSession(String(model))

    companion object {
        private val one = OrtEnvironment()

        @JvmStatic
        fun getEnvironment(): OrtEnvironment = one
    }
}

/** file: the name of the graph's file, which stands in for its content. */
class OrtSession(private val file: String) : AutoCloseable {
    fun run(inputs: Map<String, OnnxTensor>): Result {
        val output = Wire.output
        output.writeUTF(file)
        output.writeInt(inputs.size)
        for ((name, tensor) in inputs) {
            output.writeUTF(name)
            output.writeInt(tensor.shape.size)
            tensor.shape.forEach { output.writeInt(it.toInt()) }
            tensor.values.forEach { output.writeFloat(it) }
        }
        output.flush()
        val input = Wire.input
        val found = LinkedHashMap<String, OnnxValue>()
        repeat(input.readInt()) {
            val name = input.readUTF()
            val shape = LongArray(input.readInt()) { input.readInt().toLong() }
            val values = FloatArray(shape.reduce { a, b -> a * b }.toInt()) { input.readFloat() }
            found[name] = OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), FloatBuffer.wrap(values), shape)
        }
        return Result(found)
    }

    override fun close() = Unit

    class SessionOptions : AutoCloseable {
        fun setIntraOpNumThreads(threads: Int) = check(threads > 0)

        override fun close() = Unit
    }

    class Result(private val values: Map<String, OnnxValue>) : AutoCloseable {
        fun get(name: String): Optional<OnnxValue> = Optional.ofNullable(values[name])

        override fun close() = Unit
    }
}
