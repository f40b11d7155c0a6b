"""difiisr_training: data, degradations, losses, the training loop and evaluation."""
