"""Redis Streams in: the consumer group of the ordered inputs, partition leases, and the table feeds."""
