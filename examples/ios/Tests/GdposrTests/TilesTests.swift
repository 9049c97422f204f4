import XCTest

@testable import Gdposr

final class TilesTests: XCTestCase {
    private struct Vectors: Decodable {
        let spans: [Case]
    }

    private struct Case: Decodable {
        let length, window: Int
        let spans: [[Int]]
    }

    func testSpans() throws {
        let file: Vectors = try vectors("tiles.json")
        let cases = file.spans.filter { $0.window == Model.window }
        XCTAssertFalse(cases.isEmpty)
        for one in cases {
            XCTAssertEqual(Tiles.spans(one.length), one.spans.map { Span(window: $0[0], core: $0[2]..<$0[3]) })
        }
    }
}
