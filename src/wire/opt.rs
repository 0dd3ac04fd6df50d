//! EDNS (RFC 6891): what a client's OPT says, the OPT we send, extended errors (RFC 8914) and the tag.
//!
//! An OPT belongs to one hop. The client's is reduced to [`Edns`], the upstream's to its upper rcode bits and its
//! [`Ede`]s; ours is written anew for each reply and carries nothing but EDEs, the [`TagOption`] and a [`ReplyCookie`]. No
//! other option passes in either direction: not cookies, not client subnets, and never a local-use code, or an upstream could
//! fake our tag.

use super::rtype;

/// The UDP size that we advertise and never go beyond: fits one unfragmented packet on every usual path.
pub const UDP_SIZE: u16 = 1232;

/// How many EDEs of an upstream are kept.
pub const EDES_MAX: usize = 3;

/// The most octets of text an EDE passes on.
pub(super) const EDE_TEXT_LEN_MAX: usize = 64;

/// The most octets of text in the tag option, and in the EDE that shows it.
pub const TAG_TEXT_LEN_MAX: usize = 128;

/// Octets of an OPT without options: root name, type, size, rcode and flags, length.
pub(super) const OPT_LEN: usize = 11;

/// Octets of an EDE option without text: code, length, INFO-CODE.
pub(super) const EDE_LEN: usize = 6;

/// DO, in the upper octet of the flags (RFC 3225 §3).
const DNSSEC_OK: u8 = 0x80;

/// The EDE option code (RFC 8914 §2).
const EDE_CODE: u16 = 15;

/// The COOKIE option code (RFC 7873 §4).
const COOKIE_CODE: u16 = 10;

/// A cookie as a reply carries it: that of the client and that of the server (RFC 7873, RFC 9018).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyCookie([u8; 24]);

impl ReplyCookie {
    /// Octets that the option takes.
    pub(super) const OPTION_LEN: usize = 4 + 24;

    /// Takes both, in this order.
    pub fn new(octets: [u8; 24]) -> Self {
        Self(octets)
    }

    /// Returns both.
    pub fn octets(&self) -> &[u8; 24] {
        &self.0
    }

    /// Appends the option.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0, COOKIE_CODE as u8, 0, self.0.len() as u8]);
        out.extend_from_slice(&self.0);
    }
}

/// Finds the cookie among a client's options; `None` if an option runs past the end.
pub(super) fn cookie_in(rdata: &[u8]) -> Option<Option<&[u8]>> {
    let mut cookie = None;
    for option in Options::new(rdata) {
        let (code, value) = option?;
        if code == COOKIE_CODE {
            cookie = cookie.or(Some(value));
        }
    }
    Some(cookie)
}

/// What matters of a client's OPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP reply the client takes; values below 512 are raised to it (RFC 6891 §6.2.3).
    pub udp_size: u16,
    /// The client wants DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
}

/// An OPT's fixed fields as read from a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptFields {
    pub(super) edns: Edns,
    /// The upper eight bits of the rcode.
    pub(super) rcode_high: u8,
    pub(super) version: u8,
}

impl OptFields {
    /// Takes them from where an ordinary record has its class and TTL (RFC 6891 §6.1.2).
    pub(super) fn from_class_and_ttl(class: u16, ttl: u32) -> Self {
        let [rcode_high, version, flags, _] = ttl.to_be_bytes();
        let edns = Edns { udp_size: class.max(512), dnssec_ok: flags & 0x80 != 0 };
        Self { edns, rcode_high, version }
    }
}

/// Goes through the options of an OPT: code and value each.
pub(super) struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    pub(super) fn new(rdata: &'a [u8]) -> Self {
        Self(rdata)
    }

    /// Returns whether every option ends inside the RDATA.
    pub(super) fn are_whole(rdata: &'a [u8]) -> bool {
        Self(rdata).all(|option| option.is_some())
    }
}

/// Yields `None` once, as the last item, if an option runs past the end.
impl<'a> Iterator for Options<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self.0.split_at_checked(4).and_then(|(head, rest)| {
            let code = u16::from_be_bytes([head[0], head[1]]);
            let len = u16::from_be_bytes([head[2], head[3]]);
            let (value, rest) = rest.split_at_checked(usize::from(len))?;
            Some((code, value, rest))
        });
        self.0 = whole.map_or(&[], |(_, _, rest)| rest);
        Some(whole.map(|(code, value, _)| (code, value)))
    }
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ede {
    /// INFO-CODE.
    pub code: u16,
    /// EXTRA-TEXT; may be empty, at most 64 octets are passed on.
    pub text: Box<str>,
}

impl Ede {
    /// Makes an error whose text is cut to 64 octets.
    pub fn new(code: u16, text: &str) -> Self {
        Self { code, text: cut(text, EDE_TEXT_LEN_MAX).into() }
    }

    /// Reads an option's value as an upstream sent it; `None` if it is too short to hold a code.
    ///
    /// Text that is not UTF-8 is dropped (RFC 8914 §2 demands UTF-8), and so is any text of code 0: that is how our
    /// tag looks.
    fn from_upstream(value: &[u8]) -> Option<Self> {
        let (code, text) = value.split_at_checked(2)?;
        let code = u16::from_be_bytes([code[0], code[1]]);
        let text = if code == super::ede::OTHER { "" } else { std::str::from_utf8(text).unwrap_or("") };
        // The text may be null-terminated (RFC 8914 §2).
        Some(Self::new(code, text.trim_end_matches('\0')))
    }

    /// Returns how many octets the option takes.
    pub(super) fn option_len(&self) -> usize {
        EDE_LEN + self.shown().len()
    }

    /// Appends the option, with or without its text.
    pub(super) fn write(&self, out: &mut Vec<u8>, with_text: bool) {
        write_ede(out, self.code, if with_text { self.shown() } else { "" });
    }

    /// Returns the text as far as it is passed on; the field is public and may hold more.
    fn shown(&self) -> &str {
        cut(&self.text, EDE_TEXT_LEN_MAX)
    }
}

/// Collects the EDEs among options, an upstream's or those of a kept answer: the first [`EDES_MAX`] of them.
pub(super) fn edes_in(options: &[u8]) -> Vec<Ede> {
    Options::new(options)
        .flatten()
        .filter(|(code, _)| *code == EDE_CODE)
        .filter_map(|(_, value)| Ede::from_upstream(value))
        .take(EDES_MAX)
        .collect()
}

/// Appends our OPT up to where its options start; `options_len` octets of them must follow.
///
/// DO is echoed (RFC 3225 §3), the version is 0, and the upper bits of `rcode` stand here.
pub(super) fn write_opt_head(out: &mut Vec<u8>, rcode: u16, dnssec_ok: bool, options_len: usize) {
    let [_, option_type] = rtype::OPT.to_be_bytes();
    let [size_high, size_low] = UDP_SIZE.to_be_bytes();
    let rcode_high = (rcode >> 4) as u8;
    let flags = if dnssec_ok { DNSSEC_OK } else { 0 };
    // The options are bounded by the message they were fitted into.
    let [len_high, len_low] = (options_len as u16).to_be_bytes();
    out.extend_from_slice(&[0, 0, option_type, size_high, size_low, rcode_high, 0, flags, 0, len_high, len_low]);
}

/// What a tag says, before it is bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagText<'a> {
    /// The id of the app with the most specific trigger.
    pub app: &'a str,
    /// That trigger, as its list writes it.
    pub trigger: &'a str,
    /// Further apps that said yes.
    pub also: &'a [&'a str],
}

impl TagText<'_> {
    /// Returns `app=<id>;match=<trigger>[;also=<id>,…]`, at most [`TAG_TEXT_LEN_MAX`] octets.
    ///
    /// What is too long loses `match` first, then the last further apps; an id longer than the bound is cut.
    pub fn to_text(&self) -> String {
        let with_match = self.assemble(true, self.also.len());
        if with_match.len() <= TAG_TEXT_LEN_MAX {
            return with_match;
        }
        let fitting = (0..=self.also.len())
            .rev()
            .map(|also_count| self.assemble(false, also_count))
            .find(|text| text.len() <= TAG_TEXT_LEN_MAX);
        fitting.unwrap_or_else(|| cut(&self.assemble(false, 0), TAG_TEXT_LEN_MAX).to_owned())
    }

    fn assemble(&self, with_match: bool, also_count: usize) -> String {
        let mut text = format!("app={}", self.app);
        if with_match {
            text.push_str(";match=");
            text.push_str(self.trigger);
        }
        for (i, id) in self.also.iter().take(also_count).enumerate() {
            text.push_str(if i == 0 { ";also=" } else { "," });
            text.push_str(id);
        }
        text
    }

    /// Returns `bypass <id> (<trigger>)`, without the trigger if that would be too long.
    fn ede_text(&self) -> String {
        let whole = format!("bypass {} ({})", self.app, self.trigger);
        if whole.len() <= TAG_TEXT_LEN_MAX {
            return whole;
        }
        cut(&format!("bypass {}", self.app), TAG_TEXT_LEN_MAX).to_owned()
    }
}

/// Our OPT for one tag, with the option and the EDE in it, as bytes made once per catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagOption {
    /// As for a client without DO and an answer without EDEs of its own.
    opt: Box<[u8]>,
}

impl TagOption {
    /// Builds both; code 0 leaves the option out, `extended_error` decides on the EDE (code 0, RFC 8914 §4.1).
    pub fn new(option_code: u16, extended_error: bool, tag_text: &TagText<'_>) -> Self {
        let mut opt = Vec::new();
        write_opt_head(&mut opt, 0, false, 0);
        if option_code != 0 {
            let text = tag_text.to_text();
            opt.extend_from_slice(&option_code.to_be_bytes());
            opt.extend_from_slice(&(text.len() as u16).to_be_bytes());
            opt.extend_from_slice(text.as_bytes());
        }
        if extended_error {
            write_ede(&mut opt, super::ede::OTHER, &tag_text.ede_text());
        }
        let options_len = (opt.len() - OPT_LEN) as u16;
        opt[OPT_LEN - 2..OPT_LEN].copy_from_slice(&options_len.to_be_bytes());
        Self { opt: opt.into_boxed_slice() }
    }

    /// Returns how many octets both take.
    pub(super) fn len(&self) -> usize {
        self.opt.len() - OPT_LEN
    }

    /// Appends the OPT with both as [`write_opt_head`] does; `more_len` octets of further options must follow.
    pub(super) fn write_opt(&self, out: &mut Vec<u8>, rcode: u16, dnssec_ok: bool, more_len: usize) {
        let at = out.len();
        out.extend_from_slice(&self.opt);
        let Some(head) = out.get_mut(at..at + OPT_LEN) else { return };
        head[5] = (rcode >> 4) as u8;
        head[7] = if dnssec_ok { DNSSEC_OK } else { 0 };
        if more_len > 0 {
            let [len_high, len_low] = ((self.len() + more_len) as u16).to_be_bytes();
            (head[9], head[10]) = (len_high, len_low);
        }
    }
}

/// Appends one EDE option.
fn write_ede(out: &mut Vec<u8>, code: u16, text: &str) {
    // Callers hold the text below 128 octets.
    let len = (2 + text.len()) as u16;
    out.extend_from_slice(&EDE_CODE.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Returns the longest start of `text` that ends at a character and takes at most `len_max` octets.
fn cut(text: &str, len_max: usize) -> &str {
    let mut end = len_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(app: &str, trigger: &str, also: &[&str]) -> String {
        TagText { app, trigger, also }.to_text()
    }

    #[test]
    fn tag_text_names_app_trigger_and_further_apps() {
        assert_eq!(text("zoom", "zoom.us", &[]), "app=zoom;match=zoom.us");
        assert_eq!(text("zoom", "=a.zoom.us", &["teams", "webex"]), "app=zoom;match==a.zoom.us;also=teams,webex");
    }

    #[test]
    fn tag_text_loses_match_first_then_the_last_apps() {
        let trigger = "x".repeat(200);
        assert_eq!(text("zoom", &trigger, &["teams"]), "app=zoom;also=teams");
        let (b, c) = ("b".repeat(60), "c".repeat(60));
        assert_eq!(text("zoom", "zoom.us", &[&b, &c]), format!("app=zoom;also={b}"));
        assert_eq!(text(&"é".repeat(90), "a.example", &["b"]).len(), 128);
        for len in 0..200 {
            let (app, trigger) = ("a".repeat(len), "t".repeat(200 - len));
            assert!(text(&app, &trigger, &["one", "two", "three"]).len() <= TAG_TEXT_LEN_MAX);
            assert!(TagText { app: &app, trigger: &trigger, also: &[] }.ede_text().len() <= TAG_TEXT_LEN_MAX);
        }
    }

    #[test]
    fn tag_option_has_the_parts_that_are_switched_on() {
        let text = TagText { app: "zoom", trigger: "zoom.us", also: &[] };
        let octets = |code, extended_error| {
            let mut out = Vec::new();
            let tag = TagOption::new(code, extended_error, &text);
            tag.write_opt(&mut out, 0, false, 0);
            assert_eq!(out.len(), OPT_LEN + tag.len());
            out.split_off(OPT_LEN)
        };
        let option = b"\xff\x21\0\x16app=zoom;match=zoom.us";
        let ede = b"\0\x0f\0\x17\0\0bypass zoom (zoom.us)";
        assert_eq!(octets(65_313, true), [&option[..], ede].concat());
        assert_eq!(octets(65_313, false), option);
        assert_eq!(octets(0, true), ede);
        assert_eq!(octets(0, false), b"");
    }

    #[test]
    fn an_opt_made_before_is_that_made_now() {
        let tag = TagOption::new(65_313, true, &TagText { app: "zoom", trigger: "zoom.us", also: &[] });
        for (rcode, dnssec_ok, more_len) in [(0, false, 0), (3, true, 0), (23, false, 300), (0xfff, true, 6)] {
            let (mut made, mut copied) = (vec![7], vec![7]);
            write_opt_head(&mut made, rcode, dnssec_ok, tag.len() + more_len);
            tag.write_opt(&mut copied, rcode, dnssec_ok, more_len);
            assert_eq!(copied[..made.len()], made);
            assert_eq!(copied[made.len()..], tag.opt[OPT_LEN..]);
        }
    }

    #[test]
    fn tag_without_room_for_its_trigger_still_names_the_app() {
        let text = TagText { app: "zoom", trigger: &"x".repeat(150), also: &[] };
        assert_eq!(text.ede_text(), "bypass zoom");
    }

    #[test]
    fn options_end_with_the_first_that_is_not_whole() {
        let found: Vec<_> = Options::new(&[0, 10, 0, 1, 7, 0, 3, 0, 0, 0, 9, 0, 2, 1]).collect();
        assert_eq!(found, [Some((10, &[7][..])), Some((3, &[][..])), None]);
    }
}
