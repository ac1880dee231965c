"""Gates: the balance of semantic and geometric score, per token and head."""
