"""Weight formats: how a model's matrices lie in memory when it is only run, and the product with them."""

#: The compiled function, and how many rows of hidden states one call of it takes at most.
ENTRY, MOST_ROWS = "product", 4
