import XCTest

@testable import Gdposr

final class TilesTests: XCTestCase {
    func testSideInTwoWindows() {
        XCTAssertEqual(Tiles.spans(203), [Span(window: 0, core: 0..<113), Span(window: 75, core: 113..<203)])
    }

    func testPhotoSmallerThanTheWindow() {
        XCTAssertEqual(Tiles.spans(57), [Span(window: 0, core: 0..<57)])
    }
}
