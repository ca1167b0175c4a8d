//! An API's base URL, as an operator wrote it, turned into its parts or into a message to act on.

use std::net::IpAddr;

use http::Uri;
use thiserror::Error;

/// Where an API is: the parts of its base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Whether TLS is spoken.
    pub https: bool,
    /// A host name or an address, an IPv6 address without its brackets.
    pub host: String,
    /// The TCP port; the scheme's own where the URL names none.
    pub port: u16,
    /// What comes before every path, without a slash at its end: `` or `/v1`.
    pub base_path: String,
}

/// Why a text is not the base URL of an API. The messages are for whoever wrote the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BaseError {
    /// Not a URL at all.
    #[error("this is not a URL; write it like https://api.example.com/v1")]
    NotAUrl,
    /// No scheme, or one that is not HTTP.
    #[error("the base URL must begin with https:// or http://")]
    Scheme,
    /// Credentials in the URL, which would end up in logs.
    #[error(
        "the base URL must not contain a user name or password; configure credentials separately"
    )]
    UserInfo,
    /// A query or fragment, which no request could keep.
    #[error("the base URL must end with its path: remove everything from the `{0}`")]
    AfterPath(char),
    /// A port that is no port.
    #[error("the port in the base URL must be a number from 1 to 65535")]
    Port,
    /// A host that cannot be resolved by anyone.
    #[error("the host in the base URL is not a valid host name or address")]
    Host,
    /// A path that servers read in different ways.
    #[error(
        "the path of the base URL must not contain `//`, `.` or `..` segments, or encoded slashes"
    )]
    Path,
}

impl Base {
    /// Reads a base URL. Only http and https, without user information, query or fragment.
    pub fn parse(text: &str) -> Result<Self, BaseError> {
        // The URI parser drops fragments in silence, so both are looked for first.
        if let Some(sign) = text.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(BaseError::AfterPath(sign));
        }
        if !text.contains("://") {
            return Err(BaseError::Scheme);
        }
        let uri: Uri = text.parse().map_err(|_| BaseError::NotAUrl)?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(BaseError::Scheme),
        };
        let authority = uri.authority().ok_or(BaseError::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(BaseError::UserInfo);
        }
        let host = bare_host(authority.host())?;
        let port = port_of(authority, https)?;
        let base_path = checked_path(uri.path())?;
        Ok(Self {
            https,
            host,
            port,
            base_path,
        })
    }

    /// The value of the `Host` header: brackets around IPv6, no port where it is the scheme's own.
    pub fn host_header(&self) -> String {
        let default = if self.https { 443 } else { 80 };
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == default {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

fn bare_host(host: &str) -> Result<String, BaseError> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or(BaseError::Host)?;
        return match inner.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => Ok(inner.to_owned()),
            _ => Err(BaseError::Host),
        };
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || host.len() > 253 || !host.chars().all(allowed) {
        return Err(BaseError::Host);
    }
    Ok(host.to_ascii_lowercase())
}

fn port_of(authority: &http::uri::Authority, https: bool) -> Result<u16, BaseError> {
    let after_host = authority.as_str().strip_prefix(authority.host());
    match after_host.unwrap_or_default().strip_prefix(':') {
        None => Ok(if https { 443 } else { 80 }),
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(BaseError::Port),
        },
    }
}

fn checked_path(path: &str) -> Result<String, BaseError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let lower = path.to_ascii_lowercase();
    let ambiguous = lower.contains("%2f")
        || lower.contains("%5c")
        || lower.contains("%2e")
        || lower.contains('\\')
        || path
            .split('/')
            .skip(1)
            .any(|segment| matches!(segment, "" | "." | "..") || segment.contains(';'));
    if ambiguous {
        return Err(BaseError::Path);
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_base_urls_come_apart() {
        let base = Base::parse("https://API.example.com/v1/").unwrap();
        assert_eq!(
            (base.https, base.host.as_str(), base.port),
            (true, "api.example.com", 443)
        );
        assert_eq!(base.base_path, "/v1");
        assert_eq!(base.host_header(), "api.example.com");
        let base = Base::parse("http://[::1]:8080").unwrap();
        assert_eq!((base.host.as_str(), base.base_path.as_str()), ("::1", ""));
        assert_eq!(base.host_header(), "[::1]:8080");
    }

    #[test]
    fn bad_base_urls_are_refused_for_their_reason() {
        for (text, error) in [
            ("api.example.com", BaseError::Scheme),
            ("ftp://api.example.com", BaseError::Scheme),
            ("https://", BaseError::NotAUrl),
            ("https://u:p@api.example.com", BaseError::UserInfo),
            ("https://api.example.com/?a=b", BaseError::AfterPath('?')),
            ("https://api.example.com/#top", BaseError::AfterPath('#')),
            ("https://api.example.com:0", BaseError::Port),
            ("https://api.example.com:99999", BaseError::Port),
            ("https://api.example.com:", BaseError::Port),
            ("https://api.example.com/a/../b", BaseError::Path),
            ("https://api.example.com//b", BaseError::Path),
            ("https://api.example.com/a%2Fb", BaseError::Path),
            ("https://a$b.example.com/", BaseError::Host),
            ("https://api example.com/", BaseError::NotAUrl),
        ] {
            assert_eq!(Base::parse(text), Err(error), "{text}");
        }
    }
}
