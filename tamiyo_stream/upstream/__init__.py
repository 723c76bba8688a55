"""Reference upstream: how a training run is connected to Tamiyo (design §13)."""
