//! From checked arguments to the request that goes to the API.
//!
//! Nothing here sees what the agent sent: the request is a function of the arguments, the contract and
//! the format. That is what makes "sent is what was checked, recorded and approved" true.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Map, Value};

use super::{
    Contract, Violation,
    binding::{Body, BodyFormat, Parameter},
    form, schema,
    template::encode,
    violation::{bounded, pointer_to},
};

/// Everything of a request but the API's base URL and its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamRequest {
    /// The contract's method.
    pub method: Method,
    /// Encoded path, and `?` with the query string if there is one.
    pub path_and_query: String,
    /// The headers that the contract binds.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body's media type; none without a body.
    pub content_type: Option<HeaderValue>,
    /// The body; empty without one.
    pub body: Bytes,
}

impl fmt::Debug for UpstreamRequest {
    /// Path, headers and body carry arguments, and arguments are never logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamRequest")
            .field("method", &self.method)
            .field("content_type", &self.content_type)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why arguments cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A value has no form in the place where the contract wants it.
    #[error("the argument at `{pointer}` cannot be sent: {reason}")]
    Unsendable {
        /// JSON pointer into the arguments.
        pointer: String,
        /// Why, without the value.
        reason: &'static str,
    },
    /// The contract has no such body format (any more).
    #[error("the tool takes no body in the format {0}")]
    Format(BodyFormat),
}

impl BuildError {
    /// The same as a violation, to answer it like any other bad argument.
    pub fn violation(&self) -> Violation {
        match self {
            Self::Unsendable { pointer, reason } => Violation::new(pointer, *reason),
            Self::Format(_) => Violation::new("", self.to_string()),
        }
    }
}

fn unsendable(property: &str, reason: &'static str) -> BuildError {
    BuildError::Unsendable {
        pointer: pointer_to("", property),
        reason,
    }
}

impl Contract {
    /// Builds the request for arguments that [`Contract::validate`] accepts.
    ///
    /// Without a format the contract's first one is used. Where the body is an object and no property
    /// of it is given, POST, PUT and PATCH send `{}` in JSON; a form, an absent whole-body argument and
    /// DELETE send no body. An empty list in the query string sends nothing.
    ///
    /// # Errors
    ///
    /// [`BuildError`] for what has no form in its place: a path value that is no single segment, a
    /// header value with control characters, null or empty containers in a form, bad base64.
    pub fn request(
        &self,
        arguments: &Map<String, Value>,
        format: Option<BodyFormat>,
    ) -> Result<UpstreamRequest, BuildError> {
        self.nothing_left_over(arguments)?;
        let mut path_and_query = self.path_text(arguments)?;
        let mut separator = '?';
        for parameter in &self.binding.query {
            for text in query_texts(arguments, parameter)? {
                path_and_query.push(separator);
                separator = '&';
                encode(&parameter.property, &mut path_and_query);
                path_and_query.push('=');
                encode(&text, &mut path_and_query);
            }
        }
        let (content_type, body) = self.body(arguments, format)?;
        Ok(UpstreamRequest {
            method: self.method.clone(),
            path_and_query,
            headers: self.header_values(arguments)?,
            content_type,
            body,
        })
    }

    /// What of the arguments could not be sent although the schema allows it. Checked together with the
    /// schema, so that nobody is asked to approve a call that cannot be made.
    pub(super) fn unsendable(&self, arguments: &Map<String, Value>) -> Option<Violation> {
        let placed = self.nothing_left_over(arguments);
        let path = self.path_text(arguments).map(|_| ());
        let headers = self.header_values(arguments).map(|_| ());
        let opaque = match &self.binding.body {
            Body::Opaque {
                property,
                base64: true,
                ..
            } => opaque_bytes(arguments, property, true).map(|_| ()),
            _ => Ok(()),
        };
        placed
            .and(path)
            .and(headers)
            .and(opaque)
            .err()
            .map(|error| error.violation())
    }

    /// INVARIANT: an argument is sent or refused, never dropped. The schema of a loaded contract names no
    /// property without a place; this holds even if a schema allows more than its loading saw.
    fn nothing_left_over(&self, arguments: &Map<String, Value>) -> Result<(), BuildError> {
        let whole_body = match &self.binding.body {
            Body::Fields(_) => return Ok(()),
            Body::None => None,
            Body::Argument { property, .. } | Body::Opaque { property, .. } => Some(property),
        };
        let mut names = arguments.keys();
        match names
            .find(|name| Some(*name) != whole_body && !self.binding.outside.contains_key(*name))
        {
            Some(name) => Err(unsendable(name, "the tool's request has no place for it")),
            None => Ok(()),
        }
    }

    fn path_text(&self, arguments: &Map<String, Value>) -> Result<String, BuildError> {
        self.binding.template.fill(
            |name| {
                arguments
                    .get(name)
                    .and_then(schema::scalar_text)
                    .ok_or_else(|| {
                        unsendable(name, "the path needs a text, a number or a boolean here")
                    })
            },
            unsendable,
        )
    }

    fn header_values(
        &self,
        arguments: &Map<String, Value>,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, BuildError> {
        let mut headers = Vec::with_capacity(self.binding.headers.len());
        for (header, Parameter { property, .. }) in &self.binding.headers {
            let Some(value) = arguments.get(property) else {
                continue;
            };
            let text = schema::scalar_text(value).ok_or_else(|| {
                unsendable(
                    property,
                    "a header needs a text, a number or a boolean here",
                )
            })?;
            if text.trim_matches([' ', '\t']) != text {
                return Err(unsendable(
                    property,
                    "a header's value cannot start or end with white space",
                ));
            }
            let value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
                unsendable(
                    property,
                    "a header's value cannot contain control characters",
                )
            })?;
            headers.push((header.clone(), value));
        }
        Ok(headers)
    }

    fn body(
        &self,
        arguments: &Map<String, Value>,
        format: Option<BodyFormat>,
    ) -> Result<(Option<HeaderValue>, Bytes), BuildError> {
        let formats = self.binding.body.formats();
        let format = match (format, formats.first()) {
            (Some(format), _) if !formats.contains(&format) => {
                return Err(BuildError::Format(format));
            }
            (Some(format), _) => format,
            (None, Some(first)) => *first,
            (None, None) => return Ok((None, Bytes::new())),
        };
        match &self.binding.body {
            Body::None => Ok((None, Bytes::new())),
            Body::Fields(_) => self.fields_body(arguments, format),
            Body::Argument { property, .. } => match arguments.get(property) {
                None => Ok((None, Bytes::new())),
                Some(value) => document(value, format, &pointer_to("", property)),
            },
            Body::Opaque {
                property,
                media_types,
                base64,
            } => {
                if !arguments.contains_key(property) {
                    return Ok((None, Bytes::new()));
                }
                let bytes = opaque_bytes(arguments, property, *base64)?;
                let BodyFormat::Opaque(index) = format else {
                    return Err(BuildError::Format(format));
                };
                let media_type = media_types
                    .get(usize::from(index))
                    .ok_or(BuildError::Format(format))?;
                let text = media_type.starts_with("text/") && !base64;
                let content_type = if text {
                    format!("{media_type}; charset=utf-8")
                } else {
                    media_type.clone()
                };
                let content_type =
                    HeaderValue::from_str(&content_type).map_err(|_| BuildError::Format(format))?;
                Ok((Some(content_type), bytes))
            }
        }
    }

    fn fields_body(
        &self,
        arguments: &Map<String, Value>,
        format: BodyFormat,
    ) -> Result<(Option<HeaderValue>, Bytes), BuildError> {
        let fields: Map<String, Value> = arguments
            .iter()
            .filter(|(name, _)| !self.binding.outside.contains_key(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let wants_document = matches!(self.method, Method::POST | Method::PUT | Method::PATCH);
        if fields.is_empty() && !(wants_document && format == BodyFormat::Json) {
            return Ok((None, Bytes::new()));
        }
        document(&Value::Object(fields), format, "")
    }
}

fn document(
    value: &Value,
    format: BodyFormat,
    pointer: &str,
) -> Result<(Option<HeaderValue>, Bytes), BuildError> {
    match (format, value) {
        (BodyFormat::Json, value) => Ok((
            Some(HeaderValue::from_static("application/json")),
            Bytes::from(value.to_string()),
        )),
        (BodyFormat::Form, Value::Object(fields)) => {
            let text = form::serialise(fields).map_err(|problem| BuildError::Unsendable {
                pointer: bounded(&format!("{pointer}{}", problem.pointer)),
                reason: problem.reason,
            })?;
            Ok((
                Some(HeaderValue::from_static(
                    "application/x-www-form-urlencoded",
                )),
                Bytes::from(text),
            ))
        }
        (BodyFormat::Form, _) => Err(BuildError::Unsendable {
            pointer: pointer.to_owned(),
            reason: "a form is an object",
        }),
        (BodyFormat::Opaque(_), _) => Err(BuildError::Format(format)),
    }
}

fn query_texts(
    arguments: &Map<String, Value>,
    parameter: &Parameter,
) -> Result<Vec<String>, BuildError> {
    let Some(value) = arguments.get(&parameter.property) else {
        return Ok(Vec::new());
    };
    let values = match value {
        Value::Array(items) => items.as_slice(),
        single => std::slice::from_ref(single),
    };
    values
        .iter()
        .map(|value| {
            schema::scalar_text(value).ok_or_else(|| {
                unsendable(
                    &parameter.property,
                    "the query string needs texts, numbers or booleans",
                )
            })
        })
        .collect()
}

fn opaque_bytes(
    arguments: &Map<String, Value>,
    property: &str,
    base64: bool,
) -> Result<Bytes, BuildError> {
    match arguments.get(property) {
        None => Ok(Bytes::new()),
        Some(Value::String(text)) if base64 => BASE64_STANDARD
            .decode(text)
            .map(Bytes::from)
            .map_err(|_| unsendable(property, "must be base64 (RFC 4648, with padding)")),
        Some(Value::String(text)) => Ok(Bytes::from(text.clone())),
        Some(_) => Err(unsendable(property, "must be text")),
    }
}
