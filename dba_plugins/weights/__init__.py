"""Weight formats: how a model's matrices lie in memory when it is only run, and the product with them."""
