"""The reference network: what Simic trains, what a checkpoint holds (design §7). Pure torch and PyG, no I/O."""
