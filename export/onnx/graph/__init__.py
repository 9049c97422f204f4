"""ONNX graphs from torch: in float32, in half precision, and with weights in few bits; and their run on real inputs."""
