//! Words and tools that every Volary domain needs: ids, clock, back-off, queues, tasks, readiness, metrics, secrets.
