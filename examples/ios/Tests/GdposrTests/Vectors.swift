import Foundation

/// A file of examples/vectors: what the Python runtime computes, written by `make vectors`.
///
/// It is read where it lies, beside this package: SwiftPM copies no resources from outside a target's folder.
func vectors<Content: Decodable>(_ name: String) throws -> Content {
    let folder = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../../vectors").standardizedFileURL
    return try JSONDecoder().decode(Content.self, from: Data(contentsOf: folder.appendingPathComponent(name)))
}
