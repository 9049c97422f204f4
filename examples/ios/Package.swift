// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Gdposr",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "Gdposr", targets: ["Gdposr"])],
    targets: [
        .target(name: "Gdposr"),
        .testTarget(name: "GdposrTests", dependencies: ["Gdposr"]),
    ]
)
