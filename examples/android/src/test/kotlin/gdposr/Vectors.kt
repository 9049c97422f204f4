package gdposr

import org.json.JSONArray
import org.json.JSONObject

/** A file among the resources of the tests; README.md, "Build", says how they come there. */
fun resource(name: String): ByteArray =
    checkNotNull(Model::class.java.getResource("/$name")) { "expected $name among the resources of the tests" }.readBytes()

/** A file of examples/vectors: what the Python runtime computes, written by `make vectors`. */
fun vectors(name: String) = JSONObject(String(resource(name)))

fun JSONObject.cases(name: String): List<JSONObject> = getJSONArray(name).list(JSONArray::getJSONObject)

fun JSONObject.texts(name: String): List<String> = getJSONArray(name).list(JSONArray::getString)

fun <T> JSONArray.list(item: JSONArray.(Int) -> T): List<T> = List(length()) { item(it) }

/** The seed's 64 bits. */
fun JSONObject.seed(): Long = java.lang.Long.parseUnsignedLong(getString("seed"))
