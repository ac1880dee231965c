"""The long-sequence path: which keys a query reads, attention over them, and its use at evaluation."""
