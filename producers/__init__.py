"""Redis Streams out: the atomic commit of decisions and refusals."""
