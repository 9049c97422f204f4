/// Four bytes a pixel (red, green, blue, unused), sRGB, upright, row by row from the top.
public struct Picture {
    public let width: Int
    public let height: Int
    public internal(set) var bytes: [UInt8]

    public init(width: Int, height: Int, bytes: [UInt8]) {
        precondition(width > 0 && height > 0 && bytes.count == 4 * width * height)
        self.width = width
        self.height = height
        self.bytes = bytes
    }
}
