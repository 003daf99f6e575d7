"""What needs a Trainer: the mixin, the data on its way to a batch, the store during a run, the Hub."""
