"""Models for other programs: parts of checkpoints, safetensors, diffusers, ONNX."""
