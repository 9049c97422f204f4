import Foundation

/// Runs the bundle's probe. An accelerator may compute something else without an error; then use other compute units or another variant.
public enum SelfTest {
    /// LR pixels, from the top and the left, that nothing beyond the probe reaches: it is smaller than a package's window.
    static let reliable = Model.probeSide - Model.context

    /// probe, expected: the pictures of the bundle's two probe files. variant: of the packages in use.
    public static func passes(
        _ upscaler: Upscaler, probe: Picture, expected: Picture, variant: String = "fp16"
    ) throws -> Bool {
        guard let floor = Model.probeFloor[variant] else { throw UpscalerError.missing(variant) }
        let result = try upscaler.upscale(probe, seed: Model.probeSeed)[0]
        return psnr(result, expected, side: reliable * Model.scale) >= floor
    }

    /// dB over red, green and blue of the first `side` rows and columns; equal pictures give infinity.
    static func psnr(_ a: Picture, _ b: Picture, side: Int) -> Double {
        precondition(a.width == b.width && a.height == b.height && side <= min(a.width, a.height))
        var sum = 0.0
        for y in 0..<side {
            for x in 0..<side {
                for channel in 0..<3 {
                    let place = 4 * (y * a.width + x) + channel
                    let difference = Double(a.bytes[place]) - Double(b.bytes[place])
                    sum += difference * difference
                }
            }
        }
        return 10 * log10(255 * 255 / (sum / Double(3 * side * side)))
    }
}
