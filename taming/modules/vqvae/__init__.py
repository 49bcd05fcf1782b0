"""Vector quantization."""
