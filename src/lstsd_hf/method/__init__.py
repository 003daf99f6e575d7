"""The method as pure functions of integers and tensors: no Trainer, no disk."""
