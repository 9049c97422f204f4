import XCTest

@testable import Gdposr

final class TilesTests: XCTestCase {
    func testOddSideInTwoWindows() {
        XCTAssertEqual(Tiles.spans(203), [Span(window: 0, core: 0..<102), Span(window: 76, core: 102..<203)])
    }

    func testPhotoSmallerThanTheWindow() {
        XCTAssertEqual(Tiles.spans(57), [Span(window: 0, core: 0..<57)])
    }
}
