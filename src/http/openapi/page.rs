//! A document as a page to read: plain HTML without a script, which loads nothing and sends nothing.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The page's own style, which its Content-Security-Policy names by hash.
pub(super) const STYLE: &str = include_str!("docs.css");

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

/// Renders a whole document.
pub(super) fn render(document: &Value) -> String {
    let mut page = String::with_capacity(256 * 1024);
    let title = escaped(text(document, "/info/title"));
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p>Version {}. <a href=\"openapi.json\">The same as OpenAPI {}</a>.</p>\n<p>{}</p>\n",
        escaped(text(document, "/info/version")),
        escaped(text(document, "/openapi")),
        prose(text(document, "/info/description")),
    );
    for (name, scheme) in members(document, "/components/securitySchemes") {
        let _ = writeln!(
            page,
            "<p>Send <code>Authorization: Bearer {}</code> ({}). {}</p>",
            escaped(text(scheme, "/bearerFormat")),
            escaped(name),
            prose(text(scheme, "/description")),
        );
    }
    let tags: Vec<&Value> = items(document, "/tags").collect();
    page.push_str("<nav>\n<ul>\n");
    for tag in &tags {
        for (path, method, operation) in operations(document, text(tag, "/name")) {
            let _ = writeln!(
                page,
                "<li><a href=\"#{}\"><code>{} {}</code></a></li>",
                escaped(text(operation, "/operationId")),
                method.to_ascii_uppercase(),
                escaped(path),
            );
        }
    }
    page.push_str("<li><a href=\"#schemas\">Schemas</a></li>\n</ul>\n</nav>\n");
    for tag in &tags {
        let name = text(tag, "/name");
        let _ = write!(
            page,
            "<section>\n<h2>{}</h2>\n<p>{}</p>\n",
            escaped(name),
            prose(text(tag, "/description"))
        );
        for (path, method, operation) in operations(document, name) {
            operation_of(&mut page, document, (path, method), operation);
        }
        page.push_str("</section>\n");
    }
    page.push_str("<section>\n<h2 id=\"schemas\">Schemas</h2>\n");
    for (name, schema) in members(document, "/components/schemas") {
        let _ = write!(
            page,
            "<section id=\"schema-{0}\">\n<h3>{0}</h3>\n<p>{1}</p>\n",
            escaped(name),
            prose(text(schema, "/description")),
        );
        schema_of(&mut page, schema);
        page.push_str("</section>\n");
    }
    page.push_str("</section>\n</body>\n</html>\n");
    page
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn members<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let members = value.pointer(pointer).and_then(Value::as_object);
    members.into_iter().flat_map(Map::iter)
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    let items = value.pointer(pointer).and_then(Value::as_array);
    items.into_iter().flatten()
}

/// The operations of a tag: path, method, operation.
fn operations<'a>(
    document: &'a Value,
    tag: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str, &'a Value)> {
    members(document, "/paths").flat_map(move |(path, item)| {
        METHODS.into_iter().filter_map(move |method| {
            let operation = item.get(method)?;
            let is_its = items(operation, "/tags").any(|name| name.as_str() == Some(tag));
            is_its.then_some((path.as_str(), method, operation))
        })
    })
}

fn operation_of(page: &mut String, document: &Value, way: (&str, &str), operation: &Value) {
    let (path, method) = way;
    let _ = write!(
        page,
        "<section id=\"{}\">\n<h3><span class=\"method\">{}</span> <code>{}</code></h3>\n<p>{}</p>\n",
        escaped(text(operation, "/operationId")),
        method.to_ascii_uppercase(),
        escaped(path),
        prose(text(operation, "/summary")),
    );
    if let Some(description) = operation.get("description").and_then(Value::as_str) {
        let _ = writeln!(page, "<p>{}</p>", prose(description));
    }
    if operation.get("security").is_some() {
        page.push_str("<p>Takes no key.</p>\n");
    }
    let mut parameters = items(operation, "/parameters").peekable();
    if parameters.peek().is_some() {
        page.push_str("<h4>Parameters</h4>\n<table>\n");
        for parameter in parameters {
            let name = format!("{} ({})", text(parameter, "/name"), text(parameter, "/in"));
            let is_required = parameter.get("required") == Some(&Value::Bool(true));
            let kind = parameter.get("schema").map(kind_of).unwrap_or_default();
            row(
                page,
                &name,
                is_required,
                &kind,
                text(parameter, "/description"),
            );
        }
        page.push_str("</table>\n");
    }
    if operation.get("requestBody").is_some() {
        page.push_str("<h4>Body</h4>\n");
        contents(page, operation, "/requestBody/content");
    }
    page.push_str("<h4>Answers</h4>\n<table>\n");
    for (status, response) in members(operation, "/responses") {
        let response = response
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|place| document.pointer(place.strip_prefix('#')?))
            .unwrap_or(response);
        let kinds: Vec<String> = members(response, "/content")
            .map(|(kind, content)| {
                let schema = content.get("schema").map(kind_of).unwrap_or_default();
                format!("<code>{}</code> {schema}", escaped(kind))
            })
            .collect();
        let headers: Vec<String> = members(response, "/headers")
            .map(|(name, header)| {
                let about = prose(text(header, "/description"));
                format!("<br><code>{}</code>: {about}", escaped(name))
            })
            .collect();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}{}</td><td>{}</td></tr>",
            escaped(status),
            prose(text(response, "/description")),
            headers.concat(),
            kinds.join("<br>"),
        );
    }
    page.push_str("</table>\n</section>\n");
}

/// Media types with their schemas and examples.
fn contents(page: &mut String, of: &Value, pointer: &str) {
    for (kind, content) in members(of, pointer) {
        let schema = content.get("schema").map(kind_of).unwrap_or_default();
        let _ = writeln!(page, "<p><code>{}</code> {schema}</p>", escaped(kind));
        let named = members(content, "/examples").filter_map(|(_, example)| example.get("value"));
        for example in content.get("example").into_iter().chain(named) {
            let example = serde_json::to_string_pretty(example).unwrap_or_default();
            let _ = writeln!(page, "<pre>{}</pre>", escaped(&example));
        }
    }
}

fn schema_of(page: &mut String, schema: &Value) {
    if schema.get("properties").is_none() {
        let _ = writeln!(page, "<p>{}</p>", kind_of(schema));
        return;
    }
    page.push_str("<table>\n");
    for (name, property) in members(schema, "/properties") {
        let is_required =
            items(schema, "/required").any(|required| required.as_str() == Some(name));
        let about = text(property, "/description");
        row(page, name, is_required, &kind_of(property), about);
    }
    page.push_str("</table>\n");
}

fn row(page: &mut String, name: &str, is_required: bool, kind: &str, about: &str) {
    let mark = if is_required {
        " class=\"required\""
    } else {
        ""
    };
    let _ = writeln!(
        page,
        "<tr><td><code{mark}>{}</code></td><td>{kind}</td><td>{}</td></tr>",
        escaped(name),
        prose(about)
    );
}

/// What a schema allows, in a few words of HTML.
fn kind_of(schema: &Value) -> String {
    if let Some(place) = schema.get("$ref").and_then(Value::as_str) {
        let name = place.rsplit('/').next().unwrap_or_default();
        return format!("<a href=\"#schema-{0}\">{0}</a>", escaped(name));
    }
    for (keyword, word) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(parts) = schema.get(keyword).and_then(Value::as_array) {
            return parts.iter().map(kind_of).collect::<Vec<_>>().join(word);
        }
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("<code>{}</code>", escaped(word.as_str().unwrap_or("null"))))
            .collect();
        return words.join(", ");
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => vec!["any value"],
    };
    let mut kind = escaped(&types.join(" or "));
    if let Some(of) = schema.get("items").filter(|of| !of.is_boolean()) {
        kind = format!("{kind} of {}", kind_of(of));
    }
    if let Some(of) = schema
        .get("additionalProperties")
        .filter(|of| of.is_object())
    {
        kind = format!("{kind} of {}", kind_of(of));
    }
    for (keyword, word) in [
        ("format", ""),
        ("pattern", ""),
        ("minimum", "from "),
        ("maximum", "to "),
        ("default", "default "),
    ] {
        match schema.get(keyword) {
            None => {}
            Some(Value::String(value)) => {
                let _ = write!(kind, " {word}<code>{}</code>", escaped(value));
            }
            Some(value) => {
                let _ = write!(kind, " {word}{}", escaped(&value.to_string()));
            }
        }
    }
    kind
}

/// Text with what stands between backticks as code.
fn prose(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for (at, part) in text.split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(html, "<code>{}</code>", escaped(part));
        } else {
            html.push_str(&escaped(part));
        }
    }
    html
}

fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_stands_in_a_document_is_text_on_the_page() {
        let evil = "<script>alert(1)</script>\" onload='x' `<b>` &";
        let page = render(&json!({
            "openapi": evil,
            "info": {"title": evil, "version": evil, "description": evil},
            "tags": [{"name": evil, "description": evil}],
            "paths": {evil: {"get": {
                "tags": [evil], "operationId": evil, "summary": evil, "description": evil,
                "parameters": [{"name": evil, "in": evil, "description": evil, "schema": {"type": evil, "pattern": evil}}],
                "requestBody": {"content": {evil: {"schema": {"enum": [evil]}, "example": evil}}},
                "responses": {evil: {"description": evil, "headers": {evil: {"description": evil}},
                              "content": {evil: {"schema": {"$ref": evil}}}}},
            }}},
            "components": {"schemas": {evil: {"properties": {evil: {"description": evil, "default": [evil]}}}},
                           "securitySchemes": {evil: {"bearerFormat": evil}}},
        }));
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("onload='"), "{page}");
        assert!(!page.contains("<b>"), "{page}");
        assert!(!page.contains("\" onload"), "{page}");
    }
}
