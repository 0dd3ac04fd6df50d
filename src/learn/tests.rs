//! The book as a state machine, and the tasks around it.

use crate::catalogue::{AppId, Tag, TagApp};
use crate::source::Location;

/// Makes a tag of one app.
pub(super) fn tag(app: &str, trigger: &str) -> Tag {
    let hit = TagApp { app: AppId::new(app), trigger: trigger.into(), location: Location::file(app) };
    Tag::new(vec![hit])
}
