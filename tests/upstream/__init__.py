"""Facts about the reference upstream: publisher, command inbox and the Tolaria probe."""
