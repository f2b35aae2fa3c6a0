"""From the trained network to a small one: export to ONNX, static int8, and the gate that judges it."""
