//! Which property of a tool's arguments travels where: path, query string, headers or body.
//!
//! Decided once, when a contract is loaded. Reading a request and building one use the same table, so
//! what an agent may put into a place and what the gateway puts there cannot drift apart.

use std::{collections::HashMap, fmt, str::FromStr};

use http::HeaderName;

use super::{schema::Types, template::Template};

/// How a body is written. Kept with a call, so that an approved call is sent in the format in which it
/// was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyFormat {
    /// `application/json`.
    Json,
    /// `application/x-www-form-urlencoded`, nested with brackets.
    Form,
    /// One argument as it is, under the n-th of the contract's media types.
    Opaque(u8),
}

impl fmt::Display for BodyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json => f.write_str("json"),
            Self::Form => f.write_str("form"),
            Self::Opaque(index) => write!(f, "opaque:{index}"),
        }
    }
}

/// Text that names no body format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a body format: `json`, `form` and `opaque:0` are")]
pub struct NotABodyFormat;

impl FromStr for BodyFormat {
    type Err = NotABodyFormat;

    fn from_str(text: &str) -> Result<Self, NotABodyFormat> {
        match text {
            "json" => Ok(Self::Json),
            "form" => Ok(Self::Form),
            _ => text
                .strip_prefix("opaque:")
                .and_then(|index| index.parse().ok())
                .map(Self::Opaque)
                .ok_or(NotABodyFormat),
        }
    }
}

/// Where every property goes.
#[derive(Debug, Clone)]
pub(super) struct Binding {
    pub(super) template: Template,
    pub(super) path: Vec<Parameter>,
    pub(super) query: Vec<Parameter>,
    pub(super) headers: Vec<(HeaderName, Parameter)>,
    pub(super) body: Body,
    /// What stands outside of the body, by the property's name.
    pub(super) outside: HashMap<String, Outside>,
}

/// A property that stands outside of the body, and how its text is read.
#[derive(Debug, Clone)]
pub(super) struct Parameter {
    pub(super) property: String,
    pub(super) types: Types,
    /// For a list in the query string: the types of its items.
    pub(super) items: Option<Types>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    Path,
    Query,
    Header,
}

impl Outside {
    /// The place in words, after "belongs in".
    pub(super) const fn in_words(self) -> &'static str {
        match self {
            Self::Path => "the path",
            Self::Query => "the query string",
            Self::Header => "a header",
        }
    }
}

/// What the body is made of.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// There is none.
    None,
    /// An object of all properties that are bound nowhere else.
    Fields(Vec<BodyFormat>),
    /// One argument is the whole document.
    Argument {
        property: String,
        formats: Vec<BodyFormat>,
    },
    /// One text argument is the bytes, or their base64 form.
    Opaque {
        property: String,
        media_types: Vec<String>,
        base64: bool,
    },
}

impl Body {
    /// The formats in which the body may come and go; the first is the default.
    pub(super) fn formats(&self) -> Vec<BodyFormat> {
        match self {
            Self::None => Vec::new(),
            Self::Fields(formats) | Self::Argument { formats, .. } => formats.clone(),
            Self::Opaque { media_types, .. } => (0..)
                .zip(media_types)
                .map(|(index, _)| BodyFormat::Opaque(index))
                .collect(),
        }
    }
}

/// Whether a request header may be bound to a property, and if not, why.
pub(super) fn check_header(name: &str) -> Result<HeaderName, &'static str> {
    const HOP_BY_HOP: [&str; 8] = [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "expect",
    ];
    const OWN: [&str; 14] = [
        "host",
        "authorization",
        "cookie",
        "cookie2",
        "forwarded",
        "via",
        "prefer",
        "accept-encoding",
        "max-forwards",
        "x-real-ip",
        "x-original-url",
        "x-rewrite-url",
        "traceparent",
        "tracestate",
    ];
    const OVERRIDES: [&str; 4] = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-method",
    ];
    let header =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| "this is not the name of a header")?;
    let lower = header.as_str();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| lower.starts_with(prefix));
    if HOP_BY_HOP.contains(&lower) || begins(&["proxy-"]) {
        return Err("this header belongs to one connection and is never forwarded");
    }
    if OVERRIDES.contains(&lower) {
        return Err("this header turns a request into another one than was decided on");
    }
    if OWN.contains(&lower) || begins(&["content-", "toolgate-", "x-forwarded-", "sec-"]) {
        return Err("this header is set by the gateway alone");
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_with_a_meaning_of_their_own_cannot_be_bound() {
        for name in [
            "Connection",
            "keep-alive",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Proxy-Authorization",
            "Host",
            "authorization",
            "Cookie",
            "Content-Type",
            "Content-Length",
            "Toolgate-Run",
            "X-Forwarded-For",
            "Forwarded",
            "X-HTTP-Method-Override",
            "X-Method-Override",
            "X-HTTP-Method",
            "Accept-Encoding",
            "Expect",
            "bad name",
            "",
        ] {
            assert!(check_header(name).is_err(), "{name}");
        }
        for name in [
            "If-Match",
            "Idempotency-Key",
            "Stripe-Account",
            "Accept-Language",
        ] {
            assert!(check_header(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn body_formats_read_back() {
        for format in [BodyFormat::Json, BodyFormat::Form, BodyFormat::Opaque(3)] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("opaque".parse::<BodyFormat>().is_err());
    }
}
