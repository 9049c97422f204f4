import CryptoKit
import Foundation
import XCTest

@testable import Gdposr

final class NoiseTests: XCTestCase {
    private struct Vectors: Decodable {
        let philox: [Block]
        let values: [Value]
        let fields: [Field]
    }

    private struct Block: Decodable {
        let counter, key, result: [String]
    }

    private struct Value: Decodable {
        let seed, bits: String
        let sample: UInt32
        let y, x, channel: Int
    }

    private struct Field: Decodable {
        let seed, sha256: String
        let sample: UInt32
        let y0, x0, height, width, channels: Int
    }

    func testPhilox() throws {
        let file: Vectors = try vectors("noise.json")
        for block in file.philox {
            let (c, k) = (block.counter.map(word), block.key.map(word))
            let words = Noise.philox(c[0], c[1], c[2], c[3], k[1] << 32 | k[0])
            XCTAssertEqual([words.0, words.1, words.2, words.3], block.result.map(word))
        }
    }

    func testSingleValues() throws {
        let file: Vectors = try vectors("noise.json")
        for v in file.values {
            let field = Noise.field(
                seed: UInt64(v.seed)!, sample: v.sample, y0: v.y, x0: v.x, height: 1, width: 1, channels: v.channel + 1
            )
            XCTAssertEqual(UInt64(field[v.channel].bitPattern), word(v.bits))
        }
    }

    func testWholeFields() throws {
        let file: Vectors = try vectors("noise.json")
        for f in file.fields {
            let field = Noise.field(
                seed: UInt64(f.seed)!, sample: f.sample, y0: f.y0, x0: f.x0,
                height: f.height, width: f.width, channels: f.channels
            )
            let little = field.map { $0.bitPattern.littleEndian }
            let bytes = little.withUnsafeBytes { Data($0) }
            let hex = SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
            XCTAssertEqual(hex, f.sha256)
        }
    }

    private func word(_ hex: String) -> UInt64 { UInt64(hex, radix: 16)! }
}
