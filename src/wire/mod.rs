//! DNS messages as bytes: read in place, walked once, finished per client. No I/O.
