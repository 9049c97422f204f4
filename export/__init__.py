"""From a checkpoint to a bundle: the student's training, conversion to ONNX and Core ML, and the proof against torch."""
