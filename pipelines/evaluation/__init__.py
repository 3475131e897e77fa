"""The parts of `evaluate`: scores by Ray Data, and the folder that is left of them."""
