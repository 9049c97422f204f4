"""The libraries that run a bundle's graphs (ONNX Runtime, OpenVINO, Core ML) and the devices that they use."""
