"""Generated from `open_inference.proto`; README.md says how. Do not edit."""
