"""A video model whose memory is that of a card which is not there, for tests of what plans it and what runs out."""
