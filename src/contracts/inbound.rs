//! From an HTTP request on an API's own paths to arguments.
//!
//! Whatever the contract has no place for is refused here, and text becomes the type that the schema
//! wants, so that arguments look the same whichever way a tool is called.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::{
    Contract, Violation,
    binding::{Body, BodyFormat, Parameter},
    form,
    schema::{self, Types},
    violation::{MAX_VIOLATIONS, pointer_to},
};
use crate::json::{self, shown};

/// Why a request is refused before its arguments are checked. Every text is safe to show to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The bytes cannot be read (400).
    #[error("{0}")]
    Malformed(String),
    /// The body is not in a format that the tool takes (415).
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// Readable, but not what the contract describes (422).
    #[error("the request does not match the tool's contract in {} place(s)", .0.len())]
    Invalid(Vec<Violation>),
    /// The body is larger than the contract's limit (413).
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit that was passed.
        limit_bytes: usize,
    },
}

impl From<json::ParseError> for RequestError {
    fn from(error: json::ParseError) -> Self {
        Self::Malformed(format!("the body is {error}"))
    }
}

impl Contract {
    /// Collects the arguments of a request whose path matched this contract's template. They are not
    /// yet validated. The format is that of the body, or none if there was no body.
    ///
    /// # Errors
    ///
    /// See [`RequestError`].
    pub fn arguments_from_http(
        &self,
        params: &[(String, String)],
        raw_query: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(Map<String, Value>, Option<BodyFormat>), RequestError> {
        let mut reading = Reading::default();
        self.read_path(params, &mut reading);
        self.read_query(raw_query.unwrap_or_default(), &mut reading)?;
        self.read_headers(headers, &mut reading);
        let format = self.read_body(headers, body, &mut reading)?;
        if reading.violations.is_empty() {
            Ok((reading.arguments, format))
        } else {
            reading.violations.truncate(MAX_VIOLATIONS);
            Err(RequestError::Invalid(reading.violations))
        }
    }

    fn read_path(&self, params: &[(String, String)], reading: &mut Reading) {
        for Parameter {
            property, types, ..
        } in &self.binding.path
        {
            if let Some((_, text)) = params.iter().find(|(name, _)| name == property) {
                reading.set(property, schema::read_text(text.clone(), *types));
            }
        }
    }

    fn read_query(&self, raw: &str, reading: &mut Reading) -> Result<(), RequestError> {
        let pairs = form::pairs(raw)
            .map_err(|error| RequestError::Malformed(format!("the query string: {error}")))?;
        for (name, text) in pairs {
            let by_name = |name: &str| {
                self.binding
                    .query
                    .iter()
                    .find(|parameter| parameter.property == name)
            };
            let found = by_name(&name).or_else(|| {
                name.strip_suffix("[]")
                    .and_then(by_name)
                    .filter(|parameter| parameter.items.is_some())
            });
            let Some(Parameter {
                property,
                types,
                items,
            }) = found
            else {
                reading.refuse(
                    &name,
                    format!(
                        "the contract has no query parameter `{}`: leave it out",
                        shown(&name)
                    ),
                );
                continue;
            };
            match items {
                Some(items) => reading.append(property, schema::read_text(text, *items)),
                None if reading.arguments.contains_key(property) => {
                    reading.refuse(property, "is given twice in the query string: send it once");
                }
                None => reading.set(property, schema::read_text(text, *types)),
            }
        }
        Ok(())
    }

    fn read_headers(&self, headers: &HeaderMap, reading: &mut Reading) {
        for (
            header,
            Parameter {
                property, types, ..
            },
        ) in &self.binding.headers
        {
            let mut values = headers.get_all(header).into_iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                reading.refuse(
                    property,
                    format!("the header `{header}` is given twice: send it once"),
                );
                continue;
            }
            match std::str::from_utf8(value.as_bytes()) {
                Ok(text) => reading.set(property, schema::read_text(text.to_owned(), *types)),
                Err(_) => reading.refuse(property, format!("the header `{header}` is not UTF-8")),
            }
        }
    }

    fn read_body(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        reading: &mut Reading,
    ) -> Result<Option<BodyFormat>, RequestError> {
        if body.len() > self.limits.body_bytes {
            return Err(RequestError::TooLarge {
                limit_bytes: self.limits.body_bytes,
            });
        }
        check_content_encoding(headers)?;
        if body.is_empty() {
            return Ok(None);
        }
        if matches!(self.binding.body, Body::None) {
            return Err(RequestError::Malformed(
                "this tool takes no body: send none".to_owned(),
            ));
        }
        let format = self.body_format(headers)?;
        match &self.binding.body {
            Body::None => {}
            Body::Fields(_) => match self.document(body, format, &[&self.input])? {
                Value::Object(fields) => self.read_fields(fields, reading),
                _ => reading
                    .violations
                    .push(Violation::new("", "the body must be an object")),
            },
            Body::Argument { property, .. } => {
                let schemas = schema::property(&self.input, &[&self.input], property);
                reading.set(property, self.document(body, format, &schemas)?);
            }
            Body::Opaque {
                property, base64, ..
            } => reading.set(property, opaque(body, *base64)?),
        }
        Ok(Some(format))
    }

    fn read_fields(&self, fields: Map<String, Value>, reading: &mut Reading) {
        for (name, value) in fields {
            if let Some(place) = self.binding.outside.get(&name) {
                reading.refuse(
                    &name,
                    format!("belongs in {}, not in the body", place.in_words()),
                );
            } else {
                reading.set(&name, value);
            }
        }
    }

    fn document(
        &self,
        body: &[u8],
        format: BodyFormat,
        schemas: &[&Value],
    ) -> Result<Value, RequestError> {
        match format {
            BodyFormat::Form => form::parse(body, &self.input, schemas)
                .map(Value::Object)
                .map_err(|error| RequestError::Malformed(format!("the form: {error}"))),
            BodyFormat::Json | BodyFormat::Opaque(_) => Ok(json::parse(body)?),
        }
    }

    /// The format that the request's one `Content-Type` names, if this tool takes it.
    fn body_format(&self, headers: &HeaderMap) -> Result<BodyFormat, RequestError> {
        let unsupported = |problem: &str| {
            let accepted = self.media_types().join(", ");
            RequestError::UnsupportedMediaType(format!(
                "{problem}: send one Content-Type header with one of {accepted}"
            ))
        };
        let mut values = headers.get_all(header::CONTENT_TYPE).into_iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(unsupported("the Content-Type is missing or given twice"));
        };
        let essence = value.to_str().ok().and_then(media_type).ok_or_else(|| {
            unsupported(
                "the Content-Type cannot be read or has a parameter other than charset=utf-8",
            )
        })?;
        self.binding
            .body
            .formats()
            .into_iter()
            .zip(self.media_types())
            .find(|(_, accepted)| *accepted == essence)
            .map(|(format, _)| format)
            .ok_or_else(|| unsupported("this tool does not take this Content-Type"))
    }

    /// The media types that belong to the body's formats, in their order.
    fn media_types(&self) -> Vec<&str> {
        match &self.binding.body {
            Body::None => Vec::new(),
            Body::Opaque { media_types, .. } => media_types.iter().map(String::as_str).collect(),
            Body::Fields(formats) | Body::Argument { formats, .. } => formats
                .iter()
                .map(|format| match format {
                    BodyFormat::Form => "application/x-www-form-urlencoded",
                    BodyFormat::Json | BodyFormat::Opaque(_) => "application/json",
                })
                .collect(),
        }
    }
}

/// What has been collected so far.
#[derive(Default)]
struct Reading {
    arguments: Map<String, Value>,
    violations: Vec<Violation>,
}

impl Reading {
    fn set(&mut self, property: &str, value: Value) {
        self.arguments.insert(property.to_owned(), value);
    }

    fn append(&mut self, property: &str, value: Value) {
        let list = self
            .arguments
            .entry(property)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(items) = list {
            items.push(value);
        }
    }

    fn refuse(&mut self, property: &str, message: impl Into<String>) {
        self.violations
            .push(Violation::new(pointer_to("", property), message));
    }
}

fn check_content_encoding(headers: &HeaderMap) -> Result<(), RequestError> {
    let plain = headers
        .get_all(header::CONTENT_ENCODING)
        .into_iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if plain {
        Ok(())
    } else {
        Err(RequestError::UnsupportedMediaType(
            "the body is compressed: send it without Content-Encoding".to_owned(),
        ))
    }
}

/// The lower-case `type/subtype` of a Content-Type whose only parameter, if any, says UTF-8.
fn media_type(text: &str) -> Option<String> {
    let mut parts = text.split(';');
    let essence = parts.next()?.trim_matches([' ', '\t']).to_ascii_lowercase();
    let charset = parts.next();
    if parts.next().is_some() {
        return None;
    }
    if let Some(parameter) = charset {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim_matches([' ', '\t']);
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        let name = name.trim_start_matches([' ', '\t']);
        if !name.eq_ignore_ascii_case("charset") || !value.eq_ignore_ascii_case("utf-8") {
            return None;
        }
    }
    Some(essence)
}

fn opaque(body: &[u8], base64: bool) -> Result<Value, RequestError> {
    if base64 {
        return Ok(Value::String(BASE64_STANDARD.encode(body)));
    }
    match std::str::from_utf8(body) {
        Ok(text) if !text.contains('\0') => Ok(Value::String(text.to_owned())),
        Ok(_) => Err(RequestError::Malformed(
            "the character U+0000 cannot be stored: leave it out".to_owned(),
        )),
        Err(_) => Err(RequestError::Malformed("the body is not UTF-8".to_owned())),
    }
}

/// The types of a list's items, for reading `a=1&a=2`.
pub(super) fn item_types(root: &Value, schemas: &[&Value]) -> Types {
    schema::types_of_any(root, &schema::item(root, schemas, usize::MAX))
}
