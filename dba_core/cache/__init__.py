"""The KV cache: formats, storage of a tensor, of a layer, of the whole model, and how many bytes it takes."""
