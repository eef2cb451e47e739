"""The event log: one interface (`base`), and its two adapters, Kafka topics and Valkey Streams."""
