"""The worker: connects the stages of design §2 and owns their lifetimes."""
