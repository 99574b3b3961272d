"""Model files on disk: where they are, what they are, and the digest that names them."""
