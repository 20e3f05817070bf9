"""Parts that models of several systems are made of, and what they share about losses and positions."""
