import CoreML

/// Pictures and noise as the float16 arrays (1, channels, rows, columns) that the packages take and give. Core ML may pad their rows,
/// so every place is computed from the strides.
enum Tensors {
    /// What the encoder is shown, in [0, 1]. Beyond the photo its last row and column are repeated.
    static func window(_ photo: Picture, _ rows: Span, _ columns: Span) throws -> MLMultiArray {
        let side = Model.window
        let array = try MLMultiArray(shape: [1, 3, side, side].map { NSNumber(value: $0) }, dataType: .float16)
        array.withUnsafeMutableBufferPointer(ofType: Float16.self) { values, strides in
            for y in 0..<side {
                let row = min(rows.window + y, photo.height - 1) * photo.width
                for x in 0..<side {
                    let pixel = 4 * (row + min(columns.window + x, photo.width - 1))
                    for channel in 0..<3 {
                        let level = Float(photo.bytes[pixel + channel]) / 255
                        values[channel * strides[1] + y * strides[2] + x * strides[3]] = Float16(level)
                    }
                }
            }
        }
        return array
    }

    /// A window's noise. Its cells are counted in the whole photo, so that the texture does not depend on the windows; beyond the
    /// photo it is 0, as in the Python runtime.
    static func noise(
        seed: UInt64, sample: UInt32, photo: Picture, _ rows: Span, _ columns: Span
    ) throws -> MLMultiArray {
        let (side, cell, channels) = (Model.window / Model.noiseCell, Model.noiseCell, Model.noiseChannels)
        let (y0, x0) = (rows.window / cell, columns.window / cell)
        let height = min(side, Tiles.whole(photo.height) / cell - y0)
        let width = min(side, Tiles.whole(photo.width) / cell - x0)
        let field = Noise.field(
            seed: seed, sample: sample, y0: y0, x0: x0, height: height, width: width, channels: channels
        )
        let array = try MLMultiArray(shape: [1, channels, side, side].map { NSNumber(value: $0) }, dataType: .float16)
        array.withUnsafeMutableBufferPointer(ofType: Float16.self) { values, strides in
            for channel in 0..<channels {
                for y in 0..<side {
                    for x in 0..<side {
                        let inside = y < height && x < width
                        let value = inside ? field[(channel * height + y) * width + x] : 0
                        values[channel * strides[1] + y * strides[2] + x * strides[3]] = Float16(value)
                    }
                }
            }
        }
        return array
    }

    /// Puts the core of a result into the picture, clipped and rounded to 8 bits.
    static func place(_ sr: MLMultiArray, _ rows: Span, _ columns: Span, into result: inout Picture) throws {
        let strides = sr.strides.map(\.intValue)
        let scale = Model.scale
        let (top, left) = (rows.window * scale, columns.window * scale)
        var finite = true
        sr.withUnsafeBufferPointer(ofType: Float16.self) { values in
            for y in rows.core.lowerBound * scale..<rows.core.upperBound * scale {
                for x in columns.core.lowerBound * scale..<columns.core.upperBound * scale {
                    for channel in 0..<3 {
                        let value = Float(values[channel * strides[1] + (y - top) * strides[2] + (x - left) * strides[3]])
                        guard value.isFinite else {
                            finite = false
                            return
                        }
                        result.bytes[4 * (y * result.width + x) + channel] = UInt8(min(max(value, 0), 1) * 255 + 0.5)
                    }
                }
            }
        }
        guard finite else { throw UpscalerError.notFinite }
    }
}
