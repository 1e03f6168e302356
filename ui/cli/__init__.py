"""The histoseek command, one file per command group."""
