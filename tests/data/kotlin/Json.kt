// Stands in for the part of Android's org.json that the examples' tests use.
package org.json

class JSONObject internal constructor(private val values: Map<*, *>) {
    constructor(json: String) : this(Reader(json).value() as Map<*, *>)

    fun getString(name: String) = values[name] as String

    fun getInt(name: String) = (values[name] as Number).toInt()

    fun getLong(name: String) = (values[name] as Number).toLong()

    fun getDouble(name: String) = (values[name] as Number).toDouble()

    fun getJSONArray(name: String) = JSONArray(values[name] as List<*>)

    override fun toString() = values.toString()
}

class JSONArray internal constructor(private val values: List<*>) {
    fun length() = values.size

    fun getString(index: Int) = values[index] as String

    fun getInt(index: Int) = (values[index] as Number).toInt()

    fun getJSONArray(index: Int) = JSONArray(values[index] as List<*>)

    fun getJSONObject(index: Int) = JSONObject(values[index] as Map<*, *>)
}

/** Strings without escapes, numbers, lists, objects: what tools/vectors.py writes. */
private class Reader(json: String) {
    private val words = Regex("\"[^\"\\\\]*\"|[-+.\\w]+|[\\[\\]{},:]").findAll(json).map { it.value }.iterator()

    fun value(word: String = words.next()): Any = when (word[0]) {
        '{' -> list("}") { key -> key.trim('"').also { words.next() } to value() }.toMap()
        '[' -> list("]") { value(it) }
        '"' -> word.trim('"')
        else -> word.toLongOrNull() ?: word.toDouble()
    }

    private fun <T> list(end: String, item: (String) -> T): List<T> =
        generateSequence { words.next() }.takeWhile { it != end }.filter { it != "," }.map(item).toList()
}
