//! What a match says: which apps want the name bypassed, and which line of which list said so.

use std::fmt;
use std::sync::Arc;

use crate::source::Location;

/// The id of an app: the file name of its list without the ending. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Arc<str>);

impl AppId {
    /// Takes an id as it stands.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppId({})", self.0)
    }
}

/// One app that said yes to a name, and the trigger that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagApp {
    /// The app.
    pub app: AppId,
    /// The trigger as its list writes it.
    pub trigger: Arc<str>,
    /// Where the trigger stands.
    pub location: Location,
}

/// Every app that said yes to a name: never empty, the one with the most specific trigger first (deeper before
/// shallower, `=` before `*.` before plain), then by app id. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(Arc<[TagApp]>);

impl Tag {
    /// Takes the apps in their order.
    ///
    /// # Panics
    /// If there is none: a name that no app wants has no tag.
    pub fn new(apps: impl Into<Arc<[TagApp]>>) -> Self {
        let apps = apps.into();
        assert!(!apps.is_empty(), "a tag names at least one app");
        Self(apps)
    }

    /// Returns the apps, most specific trigger first.
    pub fn apps(&self) -> &[TagApp] {
        &self.0
    }

    /// Returns the app with the most specific trigger.
    pub fn primary(&self) -> &TagApp {
        &self.0[0]
    }

    /// Returns whether the app of this id is among them.
    pub fn has_app(&self, id: &str) -> bool {
        self.0.iter().any(|hit| hit.app.as_str() == id)
    }
}
