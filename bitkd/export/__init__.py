"""Students in other forms: plain Hugging Face checkpoints and ONNX, their sizes byte by byte, and their model cards."""
