"""The language model around the attention: norms, feed-forward, blocks, initialization."""
