//! Reading a `.list` file: made to be pasted into, diffed and reviewed.
//!
//! ```text
//! # Zoom                        the first comment line before any trigger is the title
//! #: reason = pinning           keys: title, source, retrieved (date), review-by (date), reason
//! zoom.us                       the name and everything below it
//! =login.example.com            that name only
//! *.example.net                 everything below, not the name itself
//! !files.example.com            never, from this name down, for this app
//! 198.51.100.0/24, 2001:db8:1::/48
//! ```
//!
//! Commas and new lines both separate; nothing between two commas, or after the last one, is no mistake, since
//! lists come pasted out of running text. `#` starts a comment wherever it stands; `#:` starts a key only where the
//! line begins with it, and the key's value goes on to the end of the line. White space around entries, tabs, CRLF
//! and a byte order mark are passed over. Dates are written `2026-11-24`. A key that is not known, or that stands
//! twice, is refused: a misspelled `review-by` would never speak up.
//!
//! Every line is read whatever the others hold, so one run tells all mistakes. Bounds: a file has at most 64 MiB
//! (held by the reader of the folder), a line at most 1 MiB, an entry at most 1,024 octets.

use jiff::civil::Date;

use super::draft::{Draft, Place};
use super::lint::near_miss;
use super::trigger::{Entry, Found};
use crate::source::Located;

/// The most octets of a line.
pub const LINE_LEN_MAX: usize = 1 << 20;

/// The keys that `#:` lines may set.
const KEYS: [&str; 5] = ["title", "source", "retrieved", "review-by", "reason"];

/// Reads the octets of a file into its draft.
pub(super) fn read(draft: &mut Draft, bytes: &[u8]) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut state = State { draft, has_entries: false, has_title_comment: false, keys_seen: [false; KEYS.len()] };
    for (i, line) in bytes.split(|&octet| octet == b'\n').enumerate() {
        let number = u32::try_from(i + 1).unwrap_or(u32::MAX);
        if line.len() > LINE_LEN_MAX {
            let message =
                format!("line of {} octets, at most {LINE_LEN_MAX} are read; break it at a comma", line.len());
            state.draft.refuse(Place { line: number, col: 1 }, message);
            continue;
        }
        match std::str::from_utf8(line) {
            Ok(text) => state.read_line(text, number),
            Err(error) => {
                let (good, bad) = line.split_at(error.valid_up_to());
                let col = Columns::default().of(&String::from_utf8_lossy(good), good.len());
                let octet = bad.first().copied().unwrap_or_default();
                let message = format!("octet 0x{octet:02X} is not UTF-8, expected the file saved as UTF-8");
                state.draft.refuse(Place { line: number, col }, message);
            }
        }
    }
}

/// What has been seen of the file so far.
struct State<'a> {
    draft: &'a mut Draft,
    has_entries: bool,
    has_title_comment: bool,
    keys_seen: [bool; KEYS.len()],
}

impl State<'_> {
    fn read_line(&mut self, line: &str, number: u32) {
        let start = line.trim_start();
        if let Some(key) = start.strip_prefix("#:") {
            self.read_key(line, key, number);
        } else if let Some(comment) = start.strip_prefix('#') {
            self.read_comment(comment);
        } else {
            self.read_entries(line, number);
        }
    }

    fn read_comment(&mut self, comment: &str) {
        let title = comment.trim_start_matches('#').trim();
        let is_title = !self.has_entries && !self.has_title_comment && !title.is_empty();
        if is_title {
            self.has_title_comment = true;
            // A `#: title` that came before is the more explicit of the two.
            self.draft.keys.title.get_or_insert_with(|| title.to_owned());
        }
    }

    fn read_entries(&mut self, line: &str, number: u32) {
        let body = line.split('#').next().unwrap_or_default();
        let mut columns = Columns::default();
        let mut at = 0;
        for piece in body.split(',') {
            let entry = piece.trim();
            if !entry.is_empty() {
                let start = at + (piece.len() - piece.trim_start().len());
                self.has_entries = true;
                self.read_entry(entry, Place { line: number, col: columns.of(line, start) });
            }
            at += piece.len() + 1;
        }
    }

    fn read_entry(&mut self, text: &str, place: Place) {
        match text.parse::<Entry>() {
            Ok(entry) => self.draft.push(entry, text, place),
            Err(error) => self.draft.refuse(place, error.to_string()),
        }
    }

    /// Reads what follows `#:` in `line`.
    fn read_key(&mut self, line: &str, rest: &str, number: u32) {
        let mut columns = Columns::default();
        let mut place_of = |part: &str| Place { line: number, col: columns.of(line, offset_in(line, part)) };
        let Some((key, value)) = rest.split_once('=') else {
            let place = place_of(rest.trim());
            let message = format!(
                "`#:` starts a key, found `{}`, expected `#: key = value` with one of {}",
                Found::new(rest.trim()),
                KEYS.join(", ")
            );
            return self.draft.refuse(place, message);
        };
        let (key, value) = (key.trim(), value.trim());
        let key_place = place_of(key);
        let Some(which) = KEYS.iter().position(|&known| known == key) else {
            let hint =
                near_miss(key, KEYS).map_or_else(|| format!("one of {}", KEYS.join(", ")), |near| format!("`{near}`"));
            return self.draft.refuse(key_place, format!("unknown key `{}`, expected {hint}", Found::new(key)));
        };
        if std::mem::replace(&mut self.keys_seen[which], true) {
            return self.draft.refuse(key_place, format!("key `{key}` stands twice, expected it once"));
        }
        if value.is_empty() {
            return self.draft.refuse(key_place, format!("key `{key}` has no value, expected `#: {key} = …`"));
        }
        let value_place = place_of(value);
        self.set_key(key, value, value_place);
    }

    fn set_key(&mut self, key: &str, value: &str, place: Place) {
        let location = self.draft.location(place);
        let keys = &mut self.draft.keys;
        match key {
            "title" => keys.title = Some(value.to_owned()),
            "source" => keys.source = Some(value.to_owned()),
            "reason" => keys.reason = Some(value.to_owned()),
            _ => match parse_date(value) {
                Some(date) if key == "retrieved" => keys.retrieved = Some(date),
                Some(date) => keys.review_by = Some(Located::new(date, location)),
                None => {
                    let message =
                        format!("`{}` is no date, expected year-month-day such as 2026-11-24", Found::new(value));
                    self.draft.refuse(place, message);
                }
            },
        }
    }
}

/// Reads `2026-11-24` and nothing else.
fn parse_date(text: &str) -> Option<Date> {
    let has_form = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(i, octet)| if matches!(i, 4 | 7) { octet == b'-' } else { octet.is_ascii_digit() });
    if has_form { text.parse().ok() } else { None }
}

/// Returns where `part`, cut out of `line`, starts in it.
fn offset_in(line: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(line.as_ptr() as usize).min(line.len())
}

/// Counts characters from the start of a line, going on where it last stopped: a line of a thousand entries is
/// counted once, not a thousand times.
#[derive(Default)]
struct Columns {
    offset: usize,
    chars: u32,
}

impl Columns {
    /// Returns the column of the octet at `offset`, which is not before the last one asked for.
    fn of(&mut self, line: &str, offset: usize) -> u32 {
        if let Some(between) = line.get(self.offset..offset) {
            self.chars = self.chars.saturating_add(u32::try_from(between.chars().count()).unwrap_or(u32::MAX));
            self.offset = offset;
        }
        self.chars.saturating_add(1)
    }
}
