//! One file per backend, calling the shared suite.
