//! Path templates, and the one way in which a request's path is read.
//!
//! A path that two parties read differently (`%2F`, `..;`, `//`) reaches another operation than the one
//! that was checked. So a path is cut into segments first and decoded second, and whatever could be
//! read again by somebody behind us is refused on the way in and on the way out.

use std::fmt::Write as _;

/// One segment of a path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(String),
    /// The name of the property that stands for the whole segment.
    Parameter(String),
}

/// A path template such as `/refunds/{id}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    segments: Vec<Segment>,
}

impl Template {
    /// Reads a template as it stands in a contract.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("a path starts with `/`".to_owned());
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let mut segments = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            if part.is_empty() && index + 1 < parts.len() {
                return Err("a path has no empty segments (`//`)".to_owned());
            }
            let segment = segment(part)?;
            if let Segment::Parameter(name) = &segment
                && segments.contains(&segment)
            {
                return Err(format!(
                    "the parameter `{{{name}}}` stands twice in the path"
                ));
            }
            segments.push(segment);
        }
        Ok(Self { segments })
    }

    /// The names of the parameters, in order.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// Whether one request could match both templates.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let pairs = self.segments.iter().zip(&other.segments);
        self.segments.len() == other.segments.len()
            && pairs.into_iter().all(|(one, two)| match (one, two) {
                (Segment::Literal(one), Segment::Literal(two)) => one == two,
                // The segment after a trailing slash is empty, and a parameter never is.
                (Segment::Literal(literal), Segment::Parameter(_))
                | (Segment::Parameter(_), Segment::Literal(literal)) => !literal.is_empty(),
                (Segment::Parameter(_), Segment::Parameter(_)) => true,
            })
    }

    /// The path with each parameter's value as one encoded segment. `value` answers a name with the
    /// text that stands for it; what it refuses, and what no segment may hold, is an error with the
    /// parameter's name.
    pub(super) fn fill<E>(
        &self,
        mut value: impl FnMut(&str) -> Result<String, E>,
        refuse: impl Fn(&str, &'static str) -> E,
    ) -> Result<String, E> {
        let mut path = String::new();
        for segment in &self.segments {
            path.push('/');
            match segment {
                Segment::Literal(text) => path.push_str(text),
                Segment::Parameter(name) => {
                    let text = value(name)?;
                    check_segment(&text).map_err(|reason| refuse(name, reason))?;
                    encode(&text, &mut path);
                }
            }
        }
        Ok(path)
    }
}

fn segment(part: &str) -> Result<Segment, String> {
    if let Some(name) = part
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
    {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!(
                "`{part}` is not a parameter: between the braces stands a property's name (letters, digits, `_`, `-`, `.`)"
            ));
        }
        return Ok(Segment::Parameter(name.to_owned()));
    }
    if part.contains(['{', '}']) {
        return Err(format!(
            "`{part}` mixes a parameter with text: a parameter stands for a whole segment, so make `{{name}}` the segment \
             and let the property's `pattern` say what it looks like"
        ));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte);
    if let Some(character) = part
        .chars()
        .find(|character| !u8::try_from(*character).is_ok_and(plain))
    {
        return Err(format!(
            "the character `{}` cannot stand in a path template",
            character.escape_debug()
        ));
    }
    if part == "." || part == ".." {
        return Err("a path has no `.` or `..` segments".to_owned());
    }
    Ok(Segment::Literal(part.to_owned()))
}

/// Why a decoded segment is refused, if it is: what servers and proxies are known to read again.
pub(super) fn check_segment(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("a segment is empty");
    }
    if text == "." || text == ".." {
        return Err("a segment is `.` or `..`");
    }
    for character in text.chars() {
        match character {
            '/' => return Err("a segment contains an encoded slash"),
            '\\' => return Err("a segment contains a backslash"),
            ';' => return Err("a segment contains a semicolon"),
            character if character.is_control() => {
                return Err("a segment contains a control character");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads a still encoded path (`/refunds/42`) into decoded segments joined by `/`.
pub(super) fn decode_path(raw: &str) -> Result<String, &'static str> {
    let Some(rest) = raw.strip_prefix('/') else {
        return Err("the path does not start with a slash");
    };
    let mut path = String::with_capacity(raw.len());
    let count = rest.split('/').count();
    for (index, segment) in rest.split('/').enumerate() {
        path.push('/');
        if segment.is_empty() && index + 1 == count {
            break;
        }
        let text = decode(segment, false).map_err(|problem| match problem {
            Undecodable::Percent => "a percent sign is not followed by two hexadecimal digits",
            Undecodable::Utf8 => "the decoded path is not UTF-8",
        })?;
        check_segment(&text)?;
        if segment.contains(['?', '#']) {
            return Err("the path contains a bare `?` or `#`");
        }
        path.push_str(&text);
    }
    Ok(path)
}

/// Why text could not be percent-decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undecodable {
    Percent,
    Utf8,
}

/// Percent-decodes strictly. In queries and forms a plus sign is a space.
pub(super) fn decode(text: &str, plus_is_space: bool) -> Result<String, Undecodable> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(Undecodable::Percent);
                };
                u8::try_from(high * 16 + low).map_err(|_| Undecodable::Percent)?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| Undecodable::Utf8)
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(super) fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn templates_say_what_is_wrong_with_them() {
        for (text, problem) in [
            ("refunds", "starts with `/`"),
            ("/a//b", "no empty segments"),
            ("//", "no empty segments"),
            ("/a/{x}.json", "mixes a parameter with text"),
            ("/a/x{y}", "mixes a parameter with text"),
            ("/a/{}", "not a parameter"),
            ("/a/{*rest}", "not a parameter"),
            ("/a/{x}/{x}", "stands twice"),
            ("/a/../b", "`..` segments"),
            ("/a%2Fb", "the character `%`"),
            ("/a?b=c", "the character `?`"),
            ("/a;b", "the character `;`"),
            ("/ä", "the character `ä`"),
        ] {
            let message = Template::parse(text).unwrap_err();
            assert!(message.contains(problem), "{text}: {message}");
        }
        for text in ["/", "/a/", "/a.b/{id}", "/{a}/{b}", "/v1:search"] {
            assert!(Template::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn templates_that_share_a_request_overlap() {
        let overlap = |one: &str, two: &str| {
            let (one, two) = (Template::parse(one).unwrap(), Template::parse(two).unwrap());
            assert_eq!(one.overlaps(&two), two.overlaps(&one));
            one.overlaps(&two)
        };
        assert!(overlap("/a/{x}", "/a/{y}"));
        assert!(overlap("/a/{x}", "/a/b"));
        assert!(overlap("/a/{x}/c", "/{y}/b/c"));
        assert!(overlap("/a", "/a"));
        assert!(!overlap("/a", "/a/"));
        assert!(!overlap("/a/{x}", "/a/"));
        assert!(!overlap("/a/{x}", "/b/{x}"));
        assert!(!overlap("/a/{x}", "/a/{x}/c"));
    }

    #[test]
    fn paths_with_a_second_reading_are_refused() {
        for raw in [
            "",
            "a",
            "//",
            "/a//b",
            "//a",
            "/a//",
            "/.",
            "/..",
            "/a/../b",
            "/a/%2e%2e/b",
            "/a/%2E",
            "/a/.%2e/b",
            "/a%2fb",
            "/a%2Fb",
            "/a\\b",
            "/a%5cb",
            "/a;x=1",
            "/a%3bx",
            "/..;/b",
            "/a%00",
            "/a%0d%0a",
            "/a%0A",
            "/a%7f",
            "/a%C2%85",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+2",
            "/a%ff",
            "/a%c0%ae",
            "/a%ed%a0%80",
            "/a?b",
            "/a#b",
        ] {
            assert!(decode_path(raw).is_err(), "{raw}");
        }
        assert_eq!(decode_path("/"), Ok("/".into()));
        assert_eq!(decode_path("/a/"), Ok("/a/".into()));
        assert_eq!(decode_path("/a%20b/%C3%A4+..."), Ok("/a b/ä+...".into()));
        // Decoded once and once only.
        assert_eq!(decode_path("/%252e%252e"), Ok("/%2e%2e".into()));
    }

    proptest! {
        #[test]
        fn a_filled_path_is_read_back_as_the_same_segments(value in ".{0,12}") {
            let template = Template::parse("/x/{v}/y").unwrap();
            let filled = template.fill(|_| Ok(value.clone()), |_, reason| reason);
            prop_assert_eq!(filled.is_ok(), check_segment(&value).is_ok());
            if let Ok(path) = filled {
                prop_assert!(path.bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert_eq!(path.matches('/').count(), 3);
                prop_assert_eq!(decode_path(&path).unwrap(), format!("/x/{value}/y"));
            }
        }
    }
}
