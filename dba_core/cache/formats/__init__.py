"""The storage formats of the KV cache, one file each; `info` has the sizes (no torch), `table` the codecs."""
