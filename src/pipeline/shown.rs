//! What an agent gets of an answer's sensitive values: a rule for each class, from the config and the contract. What is recorded
//! is made before, of the answer as it came; what is kept for the same request to come is made after, so that it gets the same.

use bytes::Bytes;
use http::header;
use serde_json::Value;

use super::{
    Surface, ToolCall,
    forward::ApiAnswer,
    references::{self, Issued},
    seen::{NOT_OF_ANOTHER_BODY, is_json},
};
use crate::{
    app::App,
    call::ClassRules,
    json,
    redaction::{Marks, View},
};

/// An answer as it can be looked at.
enum Body<'a> {
    Json(Value),
    Text(&'a str),
}

/// Makes the answer what its agent gets. `value` is the body where it has been read as JSON.
pub(super) async fn show(app: &App, call: &ToolCall, answer: &mut ApiAnswer, value: Option<Value>) {
    let Some(rules) = call.tool.answer_rules else {
        return;
    };
    // The state before is for the records alone.
    if call.surface == Surface::Before {
        return;
    }
    let whole = answer.body.clone();
    let read = value.or_else(|| {
        is_json(&answer.headers)
            .then(|| json::parse(&whole).ok())
            .flatten()
    });
    let body = match (read, std::str::from_utf8(&whole)) {
        (Some(value), _) => Body::Json(value),
        (None, Ok(text)) => Body::Text(text),
        // Bytes that are no text: nobody can say what stands in them.
        (None, Err(_)) => return,
    };
    let marks = &call.tool.output_marks;
    let mut issued = Issued::of(app, call);
    let mut refer = |class: &str, value: &Value| issued.refer(class, value);
    let mut seen = seen(marks, &body, View::referring(rules, &mut refer));
    if !issued.new.is_empty() && !references::keep(app, call, issued.new).await {
        let masks = ClassRules {
            marked: rules.marked.without_tokens(),
            detected: rules.detected.without_tokens(),
        };
        seen = self::seen(marks, &body, View::new(masks));
    }
    if let Some(seen) = seen {
        replace(answer, seen.into());
    }
}

/// The body as it is seen, if that is another than it is.
fn seen(marks: &Marks, body: &Body<'_>, mut view: View<'_>) -> Option<String> {
    let seen = match body {
        Body::Json(value) => {
            let mut copy = value.clone();
            view.apply(marks, &mut copy);
            copy.to_string()
        }
        Body::Text(text) => view.text(text),
    };
    view.changed.then_some(seen)
}

/// Another body, with a length of its own and without what was made over the first.
pub(super) fn replace(answer: &mut ApiAnswer, body: Bytes) {
    answer.body = body;
    answer
        .headers
        .insert(header::CONTENT_LENGTH, answer.body.len().into());
    for name in NOT_OF_ANOTHER_BODY {
        answer.headers.remove(name);
    }
}
