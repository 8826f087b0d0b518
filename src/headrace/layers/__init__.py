"""Building blocks of models: each computes one thing and knows which checkpoint tensors it is made of."""
