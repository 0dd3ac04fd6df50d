//! Master files (RFC 1035 §5), read into records with the place of each word.
//!
//! [`Lexer`] cuts the text into [`Line`]s: one record or directive each, joined over line ends inside parentheses,
//! without comments. [`Zone`] turns them into records with whole names: `$ORIGIN`, `@`, relative names, an owner
//! left out. Data is kept only where a policy zone can mean something by it. The zone-file reader of
//! `hickory-proto` would do all this but say no line and column, hence this one.
//!
//! Texts are UTF-8 so that columns count characters; names in them are ASCII with escapes.

use smallvec::SmallVec;

use super::draft::Place;
use super::trigger::Found;
use crate::name::{Name, NameError};

/// A word of a master file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    /// As written, escapes and all, without quotes.
    pub(super) text: &'a str,
    pub(super) place: Place,
    is_quoted: bool,
}

/// One record or directive.
#[derive(Debug)]
struct Line<'a> {
    /// Whether white space stands where the owner would.
    starts_blank: bool,
    words: SmallVec<[Word<'a>; 8]>,
}

/// A mistake and its place.
pub(super) type Mistake = (Place, String);

/// Cuts a master file into lines.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    col: u32,
    /// The first comment before any word.
    title: Option<&'a str>,
    has_words: bool,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1, col: 1, title: None, has_words: false }
    }

    fn place(&self) -> Place {
        Place { line: self.line, col: self.col }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Takes one octet.
    fn advance(&mut self) {
        match self.peek() {
            Some(b'\n') => (self.line, self.col) = (self.line.saturating_add(1), 1),
            // Octets after the first of a character move no column.
            Some(0x80..=0xbf) | None => {}
            Some(_) => self.col = self.col.saturating_add(1),
        }
        self.at = (self.at + 1).min(self.text.len());
    }

    fn skip_comment(&mut self) {
        let start = self.at;
        while self.peek().is_some_and(|octet| octet != b'\n') {
            self.advance();
        }
        let comment = self.text[start..self.at].trim_start_matches(';').trim();
        if !self.has_words && self.title.is_none() && !comment.is_empty() {
            self.title = Some(comment);
        }
    }

    /// Takes a bare word.
    fn word(&mut self) -> Word<'a> {
        let (start, place) = (self.at, self.place());
        while let Some(octet) = self.peek() {
            match octet {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'(' | b')' | b'"' => break,
                b'\\' => {
                    self.advance();
                    if self.peek().is_some_and(|octet| octet != b'\n') {
                        self.advance();
                    }
                }
                _ => self.advance(),
            }
        }
        // Words end at ASCII octets only, never inside a character.
        Word { text: &self.text[start..self.at], place, is_quoted: false }
    }

    /// Takes a word in quotes; it ends on its line.
    fn quoted(&mut self) -> Result<Word<'a>, Mistake> {
        let place = self.place();
        self.advance();
        let start = self.at;
        loop {
            match self.peek() {
                None | Some(b'\n') => {
                    return Err((place, "`\"` is never closed, expected another one on this line".to_owned()));
                }
                Some(b'"') => break,
                Some(b'\\') => {
                    self.advance();
                    if self.peek().is_some_and(|octet| octet != b'\n') {
                        self.advance();
                    }
                }
                Some(_) => self.advance(),
            }
        }
        let text = &self.text[start..self.at];
        self.advance();
        Ok(Word { text, place, is_quoted: true })
    }

    /// Takes the next line that has words; `None` at the end. After a mistake the rest of that line is passed over.
    fn next_line(&mut self) -> Option<Result<Line<'a>, Mistake>> {
        let mut open: Option<Place> = None;
        let mut line = Line { starts_blank: false, words: SmallVec::new() };
        loop {
            let Some(octet) = self.peek() else {
                if let Some(place) = open {
                    return Some(Err((place, "`(` is never closed, expected `)`".to_owned())));
                }
                return (!line.words.is_empty()).then_some(Ok(line));
            };
            match octet {
                b'\n' => {
                    self.advance();
                    if open.is_none() {
                        if !line.words.is_empty() {
                            return Some(Ok(line));
                        }
                        line.starts_blank = false;
                    }
                }
                b' ' | b'\t' | b'\r' => {
                    if line.words.is_empty() && open.is_none() && self.col == 1 {
                        line.starts_blank = true;
                    }
                    self.advance();
                }
                b';' => self.skip_comment(),
                b'(' if open.is_none() => {
                    open = Some(self.place());
                    self.advance();
                }
                b')' if open.is_some() => {
                    open = None;
                    self.advance();
                }
                b'(' | b')' => {
                    let message =
                        if octet == b'(' { "`(` inside `(`, expected `)` first" } else { "`)` without `(` before it" };
                    let mistake = (self.place(), message.to_owned());
                    self.skip_comment();
                    return Some(Err(mistake));
                }
                b'"' => {
                    self.has_words = true;
                    match self.quoted() {
                        Ok(word) => line.words.push(word),
                        Err(mistake) => return Some(Err(mistake)),
                    }
                }
                _ => {
                    self.has_words = true;
                    line.words.push(self.word());
                }
            }
        }
    }
}

/// A record, as far as a policy zone needs it.
#[derive(Debug)]
pub(super) struct Record<'a> {
    /// The whole name.
    pub(super) owner: Name,
    /// The owner as written, and where; for an owner left out, where the record starts.
    pub(super) word: Word<'a>,
    pub(super) data: Data<'a>,
}

/// What a record says.
#[derive(Debug)]
pub(super) enum Data<'a> {
    /// SOA: its owner is the zone's own name.
    Soa,
    /// A CNAME: the target whole and as written.
    Cname(Name, Word<'a>),
    /// NS and the records of DNSSEC: the zone's own business.
    Housekeeping,
    /// Any other type: data for an answer.
    Other,
}

/// A master file, record by record.
pub(super) struct Zone<'a> {
    lexer: Lexer<'a>,
    origin: Name,
    /// The first `$ORIGIN`.
    first_origin: Option<Name>,
    owner: Option<(Name, Word<'a>)>,
}

impl<'a> Zone<'a> {
    /// Starts at the top of `text`, with the root as origin.
    pub(super) fn new(text: &'a str) -> Self {
        Self { lexer: Lexer::new(text), origin: Name::root(), first_origin: None, owner: None }
    }

    /// Returns the first `$ORIGIN` met so far.
    pub(super) fn first_origin(&self) -> Option<&Name> {
        self.first_origin.as_ref()
    }

    /// Returns the comment that stands before all records.
    pub(super) fn title(&self) -> Option<&'a str> {
        self.lexer.title
    }

    /// Returns the origin that relative names have now.
    pub(super) fn origin(&self) -> &Name {
        &self.origin
    }

    /// Reads the next record; `None` at the end.
    pub(super) fn next_record(&mut self) -> Option<Result<Record<'a>, Mistake>> {
        loop {
            let line = match self.lexer.next_line()? {
                Ok(line) => line,
                Err(mistake) => return Some(Err(mistake)),
            };
            let first = line.words[0];
            if !line.starts_blank && !first.is_quoted && first.text.starts_with('$') {
                match self.direct(first, &line.words[1..]) {
                    Ok(()) => {}
                    Err(mistake) => return Some(Err(mistake)),
                }
            } else {
                return Some(self.record(line.starts_blank, &line.words));
            }
        }
    }

    /// Follows a directive.
    fn direct(&mut self, directive: Word<'a>, arguments: &[Word<'a>]) -> Result<(), Mistake> {
        match directive.text.to_ascii_uppercase().as_str() {
            "$ORIGIN" => {
                let [word] = arguments else {
                    return Err((directive.place, "`$ORIGIN` takes one name".to_owned()));
                };
                self.origin = self.whole_name(*word)?;
                self.first_origin.get_or_insert_with(|| self.origin.clone());
                Ok(())
            }
            "$TTL" => match arguments {
                [word] if is_ttl(word.text) => Ok(()),
                _ => Err((directive.place, "`$TTL` takes one time, expected seconds or such as `1h`".to_owned())),
            },
            _ => {
                let message = format!(
                    "directive `{}` is not read, expected `$ORIGIN` or `$TTL`; write the records out",
                    Found::new(directive.text)
                );
                Err((directive.place, message))
            }
        }
    }

    fn record(&mut self, starts_blank: bool, words: &[Word<'a>]) -> Result<Record<'a>, Mistake> {
        let start = words[0];
        let mut rest = words;
        if !starts_blank {
            rest = &words[1..];
            // Forgotten first, so that records under a bad owner are not taken for its predecessor's.
            self.owner = None;
            self.owner = Some((self.whole_name(start)?, start));
        }
        let Some((owner, word)) = self.owner.clone() else {
            return Err((start.place, "record without an owner, expected a name at the start of the line".to_owned()));
        };
        let word = if starts_blank { Word { place: start.place, ..word } } else { word };
        // Time to live and class stand in either order, or not at all.
        for _ in 0..2 {
            if let [next, more @ ..] = rest
                && !more.is_empty()
                && (is_ttl(next.text) || is_class(next.text))
            {
                rest = more;
            }
        }
        let [rtype, data @ ..] = rest else {
            return Err((
                start.place,
                format!("`{}` has no record type, expected such as `CNAME rpz-passthru.`", Found::new(start.text)),
            ));
        };
        let data = self.data(*rtype, data)?;
        Ok(Record { owner, word, data })
    }

    fn data(&self, rtype: Word<'a>, data: &[Word<'a>]) -> Result<Data<'a>, Mistake> {
        Ok(match rtype.text.to_ascii_uppercase().as_str() {
            "SOA" => Data::Soa,
            "CNAME" => {
                let [target] = data else {
                    return Err((
                        rtype.place,
                        format!("`CNAME` with {} words after it, expected one name", data.len()),
                    ));
                };
                Data::Cname(self.whole_name(*target)?, *target)
            }
            "NS" | "RRSIG" | "NSEC" | "NSEC3" | "NSEC3PARAM" | "DNSKEY" | "DS" | "CDS" | "CDNSKEY" | "ZONEMD" => {
                Data::Housekeeping
            }
            "A" | "AAAA" | "TXT" | "MX" | "PTR" | "SRV" | "DNAME" | "CAA" | "TLSA" | "SVCB" | "HTTPS" | "NAPTR"
            | "HINFO" | "LOC" | "SSHFP" | "OPENPGPKEY" | "SMIMEA" | "URI" | "RP" | "AFSDB" | "SPF" => Data::Other,
            other if other.strip_prefix("TYPE").is_some_and(|number| number.parse::<u16>().is_ok()) => Data::Other,
            _ => {
                let message = format!("`{}` is no record type, expected such as `CNAME`", Found::new(rtype.text));
                return Err((rtype.place, message));
            }
        })
    }

    /// Makes a written name whole: `@` is the origin, a name without a final dot lies below it.
    fn whole_name(&self, word: Word<'a>) -> Result<Name, Mistake> {
        if word.text == "@" && !word.is_quoted {
            return Ok(self.origin.clone());
        }
        let fail = |error: NameError| (word.place, format!("`{}`: {error}", Found::new(word.text)));
        let name = Name::parse(word.text).map_err(fail)?;
        if is_absolute(word.text) {
            return Ok(name);
        }
        let mut wire = name.as_wire().to_vec();
        wire.pop();
        wire.extend_from_slice(self.origin.as_wire());
        Name::from_wire(&wire).map_err(fail)
    }
}

/// Returns whether the name ends with a dot that is not escaped.
fn is_absolute(text: &str) -> bool {
    text.strip_suffix('.').is_some_and(|before| {
        let backslashes = before.bytes().rev().take_while(|&octet| octet == b'\\').count();
        backslashes % 2 == 0
    })
}

/// Returns whether the word is a time: digits, with units or without.
fn is_ttl(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|octet| {
            octet.is_ascii_digit() || matches!(octet.to_ascii_lowercase(), b's' | b'm' | b'h' | b'd' | b'w')
        })
}

fn is_class(text: &str) -> bool {
    ["IN", "CH", "HS", "CS", "ANY"].iter().any(|class| class.eq_ignore_ascii_case(text))
}
