//! Content codings of cached bodies: as they are, or gzip.
//!
//! Cached bodies are compressed once, here, and carry an entity tag of their own: a compressing layer around us would
//! leave a strong tag on other bytes (RFC 9110 §8.8.3.3).

use std::io::Write;

use axum::http::header::{ACCEPT_ENCODING, HeaderMap};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Smaller bodies are sent as they are: compressed they fill as many packets.
pub(super) const GZIP_LEN_MIN: usize = 1024;

/// How a body is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    pub(super) const ALL: [Self; 2] = [Self::Identity, Self::Gzip];

    /// Returns what the coding adds to an entity tag.
    pub(super) fn tag_suffix(self) -> &'static str {
        match self {
            Self::Identity => "",
            Self::Gzip => "-gz",
        }
    }

    /// Returns what the request prefers of the two (RFC 9110 §12.5.3); identity is never refused.
    pub(super) fn accepted(request: &HeaderMap) -> Self {
        let (mut gzip, mut any, mut identity) = (None, None, None);
        for line in request.get_all(ACCEPT_ENCODING) {
            for member in line.to_str().unwrap_or_default().split(',') {
                let (name, params) = member.split_once(';').unwrap_or((member, ""));
                let slot = match name.trim().to_ascii_lowercase().as_str() {
                    "gzip" | "x-gzip" => &mut gzip,
                    "*" => &mut any,
                    "identity" => &mut identity,
                    _ => continue,
                };
                *slot = Some(weight(params));
            }
        }
        let gzip = gzip.or(any).unwrap_or(0);
        if gzip > 0 && gzip >= identity.unwrap_or(0) { Self::Gzip } else { Self::Identity }
    }
}

/// Reads `q=0.5` as thousandths; without one it is 1, malformed it is 0.
fn weight(params: &str) -> u32 {
    let params = params.trim();
    if params.is_empty() {
        return 1000;
    }
    let value = params.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    match value.and_then(|(_, value)| value.trim().parse::<f32>().ok()) {
        Some(q) if (0.0..=1.0).contains(&q) => (q * 1000.0) as u32,
        _ => 0,
    }
}

/// Compresses a body, fast rather than small: addresses do not compress well anyway.
///
/// `None` if that failed, which writing to a vector does not; the body is then sent as it is.
pub(super) fn gzip(plain: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 3), Compression::fast());
    encoder.write_all(plain).and_then(|()| encoder.finish()).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn gzip_is_chosen_where_it_is_asked_for() {
        let chosen = |value: &str| {
            let mut request = HeaderMap::new();
            request.insert(ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
            Coding::accepted(&request)
        };
        for value in ["gzip", "deflate, gzip;q=0.5", "br, *", "X-GZIP", "gzip ; q=1.0", "gzip;q=0.5, identity;q=0.5"] {
            assert_eq!(chosen(value), Coding::Gzip, "{value}");
        }
        for value in ["", "br", "gzip;q=0", "*, gzip;q=0", "identity, gzip;q=0.5", "gzip;q=2", "gzip;v=1", "gzipx"] {
            assert_eq!(chosen(value), Coding::Identity, "{value}");
        }
        assert_eq!(Coding::accepted(&HeaderMap::new()), Coding::Identity);
    }

    #[test]
    fn compressed_body_unpacks_to_itself() {
        let plain = b"192.0.2.1/32\n".repeat(1000);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*gzip(&plain).unwrap()).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }
}
