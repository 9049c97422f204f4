/// The facts about the built-in model that the code needs. Each is a value of the bundle's manifest.json, where its name is given.
public enum Model {
    /// `scale`: SR pixels for each LR pixel, along one side.
    public static let scale = 4

    /// `size.multiple_of`: windows begin at multiples of it.
    public static let multipleOf = 1

    /// `size.context`: LR pixels that a value of the result depends on, in each direction.
    public static let context = 29

    /// `coreml.*.height` and `width`: LR pixels a side. A Core ML package takes windows of this one size.
    public static let window = 128

    /// `noise.version`, see docs/noise.md.
    public static let noiseVersion = 1

    /// `noise.channels`.
    public static let noiseChannels = 4

    /// `noise.downscale`: LR pixels for each noise cell, along one side.
    public static let noiseCell = 1

    /// `encoder.inputs` and `encoder.outputs`.
    public static let image = "image"
    public static let features = ["features", "base"]

    /// `generator.inputs`, which are the features and this, and `generator.outputs`.
    public static let noise = "noise"
    public static let result = "sr"

    /// The packages in the app, without .mlmodelc: copies of the bundle's encoder.fp16.mlpackage and generator.fp16.mlpackage.
    public static let encoderFile = "GdposrEncoder"
    public static let generatorFile = "GdposrGenerator"

    /// `probe`: a small photo, and what the fp32 model makes of it with this seed and sample 0.
    public static let probeInputFile = "probe_lr.png"
    public static let probeOutputFile = "probe_sr.png"
    public static let probeSeed: UInt64 = 7

    /// LR pixels of a side of the probe.
    public static let probeSide = 64

    /// The PSNR that each variant owes the probe, in dB: the package's `floor_db` less 3, at most 45.
    public static let probeFloor = ["fp16": 45.0, "w8a8": 42.0]
}
