//! Development only: the command-line environment of the tests, fault plans and the tidy test.
