"""INT8 ONNX graphs by NNCF, with layers in floating point until they keep their accuracy budget."""
