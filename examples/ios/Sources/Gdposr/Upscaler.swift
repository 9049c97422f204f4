import CoreML
import Foundation

public enum UpscalerError: Error {
    /// A package that is not in the app, or an output that a package does not have.
    case missing(String)
    /// The model gave values that are not numbers: use other compute units.
    case notFinite
}

/// Makes a photo four times as large.
public final class Upscaler {
    private let encoder: MLModel
    private let generator: MLModel

    /// bundle: where Xcode put the compiled packages. units: `.cpuAndNeuralEngine` leaves the GPU to the interface.
    public init(bundle: Bundle = .main, units: MLComputeUnits = .cpuAndNeuralEngine) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        func load(_ name: String) throws -> MLModel {
            guard let url = bundle.url(forResource: name, withExtension: "mlmodelc") else {
                throw UpscalerError.missing(name)
            }
            return try MLModel(contentsOf: url, configuration: configuration)
        }
        encoder = try load(Model.encoderFile)
        generator = try load(Model.generatorFile)
    }

    /// One picture for each sample. Slow: call it off the main thread, and once at a time.
    ///
    /// The same photo, seed and sample give the same picture on the same device.
    public func upscale(_ photo: Picture, seed: UInt64, samples: Range<UInt32> = 0..<1) throws -> [Picture] {
        let (width, height) = (photo.width * Model.scale, photo.height * Model.scale)
        var results = samples.map { _ in
            Picture(width: width, height: height, bytes: [UInt8](repeating: 255, count: 4 * width * height))
        }
        for rows in Tiles.spans(photo.height) {
            for columns in Tiles.spans(photo.width) {
                try autoreleasepool { try upscale(photo, rows, columns, seed: seed, samples: samples, into: &results) }
            }
        }
        return results
    }

    /// One window: the encoder once, the generator for each sample.
    private func upscale(
        _ photo: Picture, _ rows: Span, _ columns: Span, seed: UInt64, samples: Range<UInt32>, into results: inout [Picture]
    ) throws {
        let image = try Tensors.window(photo, rows, columns)
        let features = try run(encoder, [Model.image: image], outputs: Model.features)
        for (number, sample) in samples.enumerated() {
            var inputs = features
            inputs[Model.noise] = try Tensors.noise(seed: seed, sample: sample, photo: photo, rows, columns)
            let output = try run(generator, inputs, outputs: [Model.result])
            guard let sr = output[Model.result] else { throw UpscalerError.missing(Model.result) }
            try Tensors.place(sr, rows, columns, into: &results[number])
        }
    }

    private func run(
        _ model: MLModel, _ inputs: [String: MLMultiArray], outputs: [String]
    ) throws -> [String: MLMultiArray] {
        let features = inputs.mapValues { MLFeatureValue(multiArray: $0) }
        let found = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        var arrays: [String: MLMultiArray] = [:]
        for name in outputs {
            guard let array = found.featureValue(for: name)?.multiArrayValue else { throw UpscalerError.missing(name) }
            arrays[name] = array
        }
        return arrays
    }
}
