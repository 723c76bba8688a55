"""Running the network: collating graphs, the engine on its device, the stage on its thread (design §8)."""
