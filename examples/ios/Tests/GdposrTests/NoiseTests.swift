import CryptoKit
import Foundation
import XCTest

@testable import Gdposr

/// The test vector of docs/noise.md.
final class NoiseTests: XCTestCase {
    private struct Value {
        let seed: UInt64
        let sample: UInt32
        let y: Int
        let x: Int
        let channel: Int
        let bits: UInt32
    }

    private let values = [
        Value(seed: 0, sample: 0, y: 0, x: 0, channel: 0, bits: 0xbe82fa50),
        Value(seed: 0, sample: 0, y: 0, x: 0, channel: 3, bits: 0x3e88fdeb),
        Value(seed: 0, sample: 0, y: 1, x: 2, channel: 1, bits: 0x3d88e706),
        Value(seed: 1, sample: 0, y: 0, x: 0, channel: 0, bits: 0x3f9d2c14),
        Value(seed: 0, sample: 1, y: 0, x: 0, channel: 0, bits: 0xbf6b60bd),
        Value(seed: 0, sample: 0, y: 7, x: 7, channel: 0, bits: 0xc0477b70),
        Value(seed: 0, sample: 0, y: 3, x: 15, channel: 1, bits: 0xc05adddd),  // a tail: the logarithm
        Value(seed: 0, sample: 0, y: 11, x: 4, channel: 0, bits: 0x4024a07a),
        Value(seed: 4294967296, sample: 0, y: 0, x: 0, channel: 0, bits: 0x40193b1a),  // a seed above 32 bits
        Value(seed: 20260325, sample: 3, y: 123, x: 456, channel: 5, bits: 0xbfddd22e),
        Value(seed: 18446744073709551615, sample: 4294967295, y: 4294967295, x: 4294967295, channel: 7, bits: 0x3ea846d3),
    ]

    func testSingleValues() {
        for v in values {
            let field = Noise.field(
                seed: v.seed, sample: v.sample, y0: v.y, x0: v.x, height: 1, width: 1, channels: v.channel + 1
            )
            XCTAssertEqual(field[v.channel].bitPattern, v.bits)
        }
    }

    func testWholeField() {
        let field = Noise.field(seed: 20260325, sample: 3, y0: 100, x0: 200, height: 64, width: 48, channels: 6)
        let little = field.map { $0.bitPattern.littleEndian }
        let bytes = little.withUnsafeBytes { Data($0) }
        let hex = SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
        XCTAssertEqual(hex, "a3107ca9b3cf45998086d6afcf386ea9fc329c8ba5d9d83b4f099fd128e3fb27")
    }
}
