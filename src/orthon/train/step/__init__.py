"""One training step: loss, gradients, learning rate and the optimizers."""
