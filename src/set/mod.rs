//! The learned set: sightings, snapshots, serials, deltas.
