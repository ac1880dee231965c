"""A Llama model in a GGUF file."""
