//! The Store seam: keyed records, leases, queues and the hash-chained journal, in memory and on SQLite.
