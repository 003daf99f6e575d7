"""All that needs a Trainer: the mixin, the data loader, the store during a run, the Hub."""
