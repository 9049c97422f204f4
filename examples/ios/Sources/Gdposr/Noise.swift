/// The noise field of docs/noise.md, version 1: a pure function of (seed, sample, y, x, channel), with the bits of the Python runtime.
///
/// Philox4x32-10 gives 32 random bits, Acklam's rational approximation turns them into a normal deviate. Swift rounds every operation
/// on Double by itself, as the definition asks; the logarithm is computed here because libraries differ in its last bit.
public enum Noise {
    // Acklam's coefficients, highest power first
    private static let a = [-3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02,
                            1.383577518672690e02, -3.066479806614716e01, 2.506628277459239e00]
    private static let b = [-5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02,
                            6.680131188771972e01, -1.328068155288572e01, 1.0]
    private static let c = [-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e00,
                            -2.549732539343734e00, 4.374664141464968e00, 2.938163982698783e00]
    private static let d = [7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00,
                            3.754408661907416e00, 1.0]
    private static let logSeries = stride(from: 21.0, to: 0.0, by: -2.0).map { 1.0 / $0 }  // 1/21, 1/19, ... 1/3, 1
    private static let ln2 = 0.6931471805599453
    private static let sqrtHalf = 0.7071067811865476
    private static let tail = 0.02425  // below this probability, and above 1 - it, the tail formula holds
    private static let rounds = 10
    private static let m0: UInt64 = 0xD251_1F53  // multipliers
    private static let m1: UInt64 = 0xCD9E_8D57
    private static let w0: UInt64 = 0x9E37_79B9  // key increments
    private static let w1: UInt64 = 0xBB67_AE85
    private static let low: UInt64 = 0xFFFF_FFFF

    /// Standard normal deviates, (channels, height, width) row by row. y0, x0: the first cell, counted in the whole photo; the last
    /// one lies below 2^32.
    public static func field(
        seed: UInt64, sample: UInt32, y0: Int, x0: Int, height: Int, width: Int, channels: Int
    ) -> [Float] {
        precondition(y0 >= 0 && x0 >= 0 && y0 + height <= 1 << 32 && x0 + width <= 1 << 32)
        var values = [Float](repeating: 0, count: channels * height * width)
        let plane = height * width
        for group in stride(from: 0, to: channels, by: 4) {
            for y in 0..<height {
                for x in 0..<width {
                    let words = philox(UInt64(x0 + x), UInt64(y0 + y), UInt64(group / 4), UInt64(sample), seed)
                    let place = group * plane + y * width + x
                    values[place] = Float(normal(words.0))
                    if group + 1 < channels { values[place + plane] = Float(normal(words.1)) }
                    if group + 2 < channels { values[place + 2 * plane] = Float(normal(words.2)) }
                    if group + 3 < channels { values[place + 3 * plane] = Float(normal(words.3)) }
                }
            }
        }
        return values
    }

    /// Philox4x32 of the counter (i0, i1, i2, i3) and the key seed. Counter and result are 32-bit numbers, kept in 64 bits.
    static func philox(
        _ i0: UInt64, _ i1: UInt64, _ i2: UInt64, _ i3: UInt64, _ seed: UInt64
    ) -> (UInt64, UInt64, UInt64, UInt64) {
        var (c0, c1, c2, c3) = (i0, i1, i2, i3)
        var (k0, k1) = (seed & low, seed >> 32)
        for _ in 0..<rounds {
            let p0 = m0 * c0  // both below 2^32: no overflow
            let p1 = m1 * c2
            (c0, c1, c2, c3) = ((p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low)
            (k0, k1) = ((k0 + w0) & low, (k1 + w1) & low)
        }
        return (c0, c1, c2, c3)
    }

    /// Normal deviate of the probability (word + 0.5) / 2^32.
    static func normal(_ word: UInt64) -> Double {
        let p = (Double(word) + 0.5) / 4294967296.0
        let q = p - 0.5
        let half = min(p, 1.0 - p)  // distance to the nearer end
        if half < tail {
            let t = (-2.0 * log(half)).squareRoot()
            let negative = polynomial(c, t) / polynomial(d, t)
            return q < 0.0 ? negative : -negative
        }
        let r = q * q
        return polynomial(a, r) * q / polynomial(b, r)
    }

    /// Natural logarithm of a positive normal number: 2 atanh((m - 1) / (m + 1)) + e ln 2.
    private static func log(_ v: Double) -> Double {
        var m = v.significand * 0.5  // v = m * 2^e, m in [0.5, 1); Swift's significand lies in [1, 2)
        var e = Double(v.exponent + 1)
        if m < sqrtHalf {
            m *= 2.0
            e -= 1.0
        }
        let s = (m - 1.0) / (m + 1.0)
        return 2.0 * s * polynomial(logSeries, s * s) + e * ln2
    }

    private static func polynomial(_ coefficients: [Double], _ v: Double) -> Double {
        var value = coefficients[0]
        for coefficient in coefficients.dropFirst() { value = value * v + coefficient }
        return value
    }
}
