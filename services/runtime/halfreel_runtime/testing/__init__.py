"""A card that is not there: memory that behaves as a GPU's, for tests of whoever plans it, shares it or runs out."""
