//! Tokens: who may read what is not open, and act, from beyond loopback (RFC 6750).
//!
//! A token is the first line of a file of its own, so that it stands neither in the configuration nor in a list of
//! processes. [`Tokens::load`] reads both files at the start and at each reload; a file that cannot be used is an
//! error, never a listener that lets everybody in or nobody. The admin token reads, too. Tokens are compared without
//! telling by the time it takes how much of a guess was right.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use axum::http::header::{AUTHORIZATION, HeaderMap};
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::Options;

/// Shorter ones can be guessed: 16 letters and digits are some 80 bits.
const LEN_MIN: usize = 16;
/// Longer ones are no token but some other file.
const LEN_MAX: usize = 512;
/// How much of a file is read: the longest token, its line's end, and room to see that it is longer.
const READ_LEN_MAX: u64 = 1024;

/// Why a token's file cannot be used; the text starts with the key.
#[derive(Debug, Error)]
pub enum TokenError {
    /// It is not there, or we may not read it.
    #[error("{key}: {path}: cannot be read: {source}; expected a file whose first line is the token")]
    Unreadable {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Its first line is no token.
    #[error(
        "{key}: {path}: the first line is {found}, expected {LEN_MIN} to {LEN_MAX} letters, digits or -._~+/=, such as \
         `openssl rand -hex 32` prints"
    )]
    Unusable {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never the line itself.
        found: String,
    },
}

/// The tokens in force.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    read: Option<Token>,
    admin: Option<Token>,
}

/// Reads a token for asking another; returns what should be better about its file, too. `key` names the file in both.
///
/// # Errors
/// The file cannot be used.
pub fn read_token(key: &'static str, path: &Path) -> Result<(String, Vec<String>), TokenError> {
    let mut warnings = Vec::new();
    let token = Token::load(key, path, &mut warnings)?;
    Ok((token.0.into(), warnings))
}

/// What a request's `Authorization` is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// None was sent, or not exactly one.
    Absent,
    /// One that is no token of ours.
    Wrong,
    /// The read token.
    Read,
    /// The admin token.
    Admin,
}

impl Tokens {
    /// Reads the files that the options name; returns what should be better about them, too, in a line each.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(options: &Options) -> Result<(Self, Vec<String>), TokenError> {
        let mut warnings = Vec::new();
        let mut load = |key: &'static str, path: &Option<PathBuf>| match path {
            Some(path) => Token::load(key, path, &mut warnings).map(Some),
            None => Ok(None),
        };
        let read = load("web.read-token-file", &options.read_token_file)?;
        let admin = load("web.admin-token-file", &options.admin_token_file)?;
        let tokens = Self { read, admin };
        if tokens.are_equal() {
            warnings.push("web.admin-token-file: holds the read token, so that every reader may act".to_owned());
        }
        Ok((tokens, warnings))
    }

    /// Returns whether both are there and one and the same.
    pub fn are_equal(&self) -> bool {
        self.read.as_ref().zip(self.admin.as_ref()).is_some_and(|(read, admin)| admin.is(read.0.as_bytes()))
    }

    /// Returns whether any token can open what is not open.
    pub(super) fn can_read(&self) -> bool {
        self.read.is_some() || self.admin.is_some()
    }

    /// Returns whether a token can act.
    pub(super) fn can_act(&self) -> bool {
        self.admin.is_some()
    }

    /// Returns what a request may do.
    pub(super) fn grant(&self, request: &HeaderMap) -> Grant {
        let mut lines = request.get_all(AUTHORIZATION).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return Grant::Absent };
        let Some(sent) = bearer(line.as_bytes()) else { return Grant::Absent };
        // Both are compared, whatever the first one says.
        let is = |token: &Option<Token>| token.as_ref().is_some_and(|token| token.is(sent));
        match (is(&self.admin), is(&self.read)) {
            (true, _) => Grant::Admin,
            (false, true) => Grant::Read,
            (false, false) => Grant::Wrong,
        }
    }
}

/// Cuts the scheme off (RFC 9110 §11.4); `None` if it is not Bearer.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"Bearer ";
    let (scheme, sent) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| sent.trim_ascii())
}

/// A secret; it prints as nothing.
#[derive(Clone)]
struct Token(Box<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    fn load(key: &'static str, path: &Path, warnings: &mut Vec<String>) -> Result<Self, TokenError> {
        let bytes = read(path, key, warnings).map_err(|source| TokenError::Unreadable {
            key,
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&bytes).map_err(|found| TokenError::Unusable { key, path: path.to_owned(), found })
    }

    /// Takes the first line, without the space around it; the error says what it is instead.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let line = bytes.split(|octet| *octet == b'\n').next().unwrap_or_default().trim_ascii();
        let is_token = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._~+/=".contains(octet);
        let found = match line.len() {
            0 => "empty".to_owned(),
            LEN_MIN..=LEN_MAX => {
                let Some(wrong) = line.iter().find(|octet| !is_token(octet)) else {
                    return Ok(Self(String::from_utf8_lossy(line).into()));
                };
                format!("text with `{}`", wrong.escape_ascii())
            }
            len if len > LEN_MAX => format!("longer than {LEN_MAX} characters"),
            1 => "1 character long".to_owned(),
            len => format!("{len} characters long"),
        };
        Err(found)
    }

    /// Compares in a time that depends on the lengths alone.
    fn is(&self, sent: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(sent).into()
    }
}

/// Reads the head of a plain file. A pipe or device would keep the start or reload waiting.
fn read(path: &Path, key: &str, warnings: &mut Vec<String>) -> io::Result<Vec<u8>> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("is no plain file"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if meta.permissions().mode() & 0o006 != 0 {
            let path = path.display();
            warnings.push(format!("{key}: {path}: everybody on this host can read or write it; run `chmod o= {path}`"));
        }
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(READ_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const READ: &str = "0123456789abcdef";
    const ADMIN: &str = "fedcba9876543210-._~+/=";

    fn token(text: &str) -> Token {
        Token::parse(text.as_bytes()).unwrap()
    }

    fn grant(tokens: &Tokens, values: &[&str]) -> Grant {
        let mut request = HeaderMap::new();
        for value in values {
            request.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        tokens.grant(&request)
    }

    #[test]
    fn first_line_is_the_token() {
        for text in [READ, "0123456789abcdef\n", " 0123456789abcdef \r\nwhat follows is a note", ADMIN] {
            let first = text.trim().lines().next().unwrap().trim();
            assert_eq!(&*token(text).0, first, "{text:?}");
        }
        for (text, found) in [
            ("", "empty"),
            ("\n0123456789abcdef\n", "empty"),
            ("x", "1 character long"),
            ("0123456789abcde", "15 characters long"),
            ("0123456789 abcdef", "text with ` `"),
            ("0123456789abcd\u{e9}f", "text with `\\xc3`"),
            ("0123456789\u{1b}[31mabcdef", "text with `\\x1b`"),
        ] {
            assert_eq!(Token::parse(text.as_bytes()).unwrap_err(), found, "{text:?}");
        }
        assert_eq!(Token::parse(&[b'a'; 513]).unwrap_err(), "longer than 512 characters");
        assert_eq!(format!("{:?}", token(READ)), "Token(…)");
    }

    #[test]
    fn admin_token_is_more_than_the_read_token() {
        let tokens = Tokens { read: Some(token(READ)), admin: Some(token(ADMIN)) };
        assert_eq!(grant(&tokens, &[]), Grant::Absent);
        assert_eq!(grant(&tokens, &["Bearer 0123456789abcdef"]), Grant::Read);
        assert_eq!(grant(&tokens, &["bEARER  0123456789abcdef"]), Grant::Read);
        assert_eq!(grant(&tokens, &[&format!("Bearer {ADMIN}")]), Grant::Admin);
        for wrong in ["Bearer ", "Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0"] {
            assert_eq!(grant(&tokens, &[wrong]), Grant::Wrong, "{wrong}");
        }
        for absent in ["", "Bearer", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert_eq!(grant(&tokens, &[absent]), Grant::Absent, "{absent}");
        }
        assert_eq!(grant(&tokens, &["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]), Grant::Absent);
        assert_eq!(grant(&Tokens::default(), &["Bearer 0123456789abcdef"]), Grant::Wrong);
        let only_admin = Tokens { read: None, admin: Some(token(ADMIN)) };
        assert!(only_admin.can_read() && only_admin.can_act());
        assert_eq!(grant(&only_admin, &[&format!("Bearer {ADMIN}")]), Grant::Admin);
    }

    #[test]
    fn unusable_files_are_named_with_their_key() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let load = |path: &Path| {
            let options = Options { admin_token_file: Some(path.to_owned()), ..Options::default() };
            Tokens::load(&options)
        };
        let message = |path: &Path| load(path).unwrap_err().to_string();
        assert!(message(&path).starts_with(&format!("web.admin-token-file: {}: cannot be read: ", path.display())));
        assert!(message(folder.path()).contains("is no plain file"));
        std::fs::write(&path, "secret\n").unwrap();
        let said = message(&path);
        assert!(said.contains("the first line is 6 characters long, expected 16 to 512") && !said.contains("secret"));

        std::fs::write(&path, READ).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(load(&path).unwrap().1, Vec::<String>::new());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load(&path).unwrap().1[0].contains("everybody on this host"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let both = Options { read_token_file: Some(path.clone()), admin_token_file: Some(path), ..Options::default() };
        assert!(Tokens::load(&both).unwrap().1[0].contains("every reader may act"));
        assert!(!Tokens::load(&Options::default()).unwrap().0.can_read());
    }
}
