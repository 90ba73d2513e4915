"""What happens in one step, from the gradients of param groups to the calls of rules."""
