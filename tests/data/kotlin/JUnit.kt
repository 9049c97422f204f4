// Stands in for the part of JUnit 4 that the examples' tests use.
package org.junit

annotation class Test

object Assert {
    @JvmStatic
    fun assertEquals(expected: Any?, actual: Any?) {
        if (expected != actual) throw AssertionError("expected $expected, got $actual")
    }

    @JvmStatic
    fun assertTrue(message: String, condition: Boolean) {
        if (!condition) throw AssertionError(message)
    }
}
