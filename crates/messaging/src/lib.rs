//! Identity, signed messages, transports, hooks and durable delivery between agents.
