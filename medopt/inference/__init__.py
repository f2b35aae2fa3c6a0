"""Running an ONNX model on a hospital's machine: ONNX Runtime and OpenVINO behind one interface, and how fast."""
