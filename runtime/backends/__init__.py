"""What runs a bundle's graphs: ONNX Runtime, OpenVINO, Core ML, and the devices they run on."""
