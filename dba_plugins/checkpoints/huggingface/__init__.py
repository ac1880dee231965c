"""The folder of a Hugging Face Llama-family model."""
