"""Wire contracts of Tamiyo stream: message structs, codec, entry envelope, signing. No I/O, no torch."""
