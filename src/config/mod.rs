//! The configuration: the file as written, and what it means.
