"""Export stage: the student, its training, ONNX conversion, quantization and bundle writing."""
