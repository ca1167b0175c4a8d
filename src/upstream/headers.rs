//! Which headers cross the gateway: those that speak about one connection never do.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST},
};

/// Removes what belongs to one connection only: the hop-by-hop headers and those that `Connection` names.
/// To be called before headers of our own are added, so that nobody can name ours for removal.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    remove_where(headers, is_hop_by_hop);
}

/// Leaves of an answer's headers what an agent may see. `Content-Length` goes too: whoever passes the
/// answer on states the length of what it passes on.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH);
    remove_where(headers, |name| {
        matches!(name, "set-cookie" | "set-cookie2" | "alt-svc") || name.starts_with("toolgate-")
    });
}

/// Makes a request's headers true for the connection it goes out on. Its length is always that of its body:
/// hyper would believe a header that says otherwise, and the next request would begin in the middle of this.
pub(super) fn prepare<B: http_body::Body>(request: &mut Request<B>, host: &HeaderValue) {
    let length = request.body().size_hint().exact().unwrap_or(0);
    let states_length = length > 0
        || matches!(
            *request.method(),
            Method::POST | Method::PUT | Method::PATCH
        );
    let headers = request.headers_mut();
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(CONTENT_LENGTH);
    if states_length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers.insert(HOST, host.clone());
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn remove_where(headers: &mut HeaderMap, doomed: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| doomed(name.as_str()))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}
