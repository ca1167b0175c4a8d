//! What counts as an answer: plain HTTP/1.1 that can be read in one way only.

use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use hyper::body::{Body, Incoming};

use super::{SendError, headers::strip_answer};

/// An API's answer. Its headers are free of what concerns only the connection, of cookies and of anything that
/// could pass for the gateway's own.
#[derive(Debug)]
pub struct Answer<B> {
    /// The status as the API sent it; never 1xx.
    pub status: StatusCode,
    /// The headers that may go on; without `Content-Length`.
    pub headers: HeaderMap,
    /// The whole body, or a stream of it.
    pub body: B,
}

/// Refuses answers that could be read in two ways or not at all, before any of the body is read.
pub(super) fn check(
    response: Response<Incoming>,
    limit: u64,
) -> Result<(StatusCode, HeaderMap, Incoming), SendError> {
    let (head, body) = response.into_parts();
    let (status, mut headers) = (head.status, head.headers);
    let invalid = |reason: &'static str| SendError::AnswerInvalid {
        status: Some(status),
        reason: reason.into(),
    };
    if status.is_informational() {
        return Err(invalid("it switches protocols"));
    }
    if is_encoded(&headers) {
        return Err(invalid("it is compressed, which was not asked for"));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(invalid("it states its length in two ways"));
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(invalid("its transfer encoding is not plain chunked"));
        }
    }
    if body
        .size_hint()
        .exact()
        .is_some_and(|length| length > limit)
    {
        return Err(SendError::AnswerTooLarge { status });
    }
    strip_answer(&mut headers);
    Ok((status, headers, body))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}
