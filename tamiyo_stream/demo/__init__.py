"""The demonstration: a real training run under Tamiyo's control, over an embedded Redis (design §14)."""
