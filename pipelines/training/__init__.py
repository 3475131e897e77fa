"""The parts of `train`: what is read and checked first, the batches, and what each Ray Train worker runs."""
