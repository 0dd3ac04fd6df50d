//! Answers that are ours to give, without asking anybody.

mod designated;
mod special;

pub use designated::{Designated, Way};
pub use special::{Options, Special};
