"""What a training step is made of: crops, losses, one optimizer step per stage."""
