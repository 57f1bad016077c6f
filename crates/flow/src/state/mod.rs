//! What outlives a process: histories of traces, durable traces, pauses.
