//! Reading an `.rpz` file.
use super::draft::Draft;
pub(super) fn read(_draft: &mut Draft, _bytes: &[u8]) {}
