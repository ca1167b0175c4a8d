//! What an agent gets of an answer's sensitive values: a rule for each class, from the config and the contract. What is recorded
//! is made before, of the answer as it came; what is kept for the same request to come is made after, so that it gets the same.

use bytes::Bytes;
use http::header;
use serde_json::Value;

use super::{
    ToolCall,
    forward::ApiAnswer,
    references::{self, Issued},
    seen::{NOT_OF_ANOTHER_BODY, is_json},
};
use crate::{
    app::{App, Tool},
    call::ClassRules,
    json,
    redaction::{Marks, View},
    runs::Run,
};

/// An answer as it can be looked at.
enum Body<'a> {
    Json(Value),
    Text(&'a str),
}

/// Who gets an answer.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub tool: &'a Tool,
    /// The run in which references are good; none where it is not known, and values are masked instead.
    pub run: Option<&'a Run>,
    /// What the gateway reads by itself is for the records and for approvers.
    pub is_agent: bool,
}

impl<'a> Asker<'a> {
    pub fn of(call: &'a ToolCall) -> Self {
        Self {
            tool: &call.tool,
            run: Some(&call.caller.run),
            is_agent: !call.surface.is_own(),
        }
    }
}

fn masking(rules: ClassRules) -> ClassRules {
    ClassRules {
        marked: rules.marked.without_tokens(),
        detected: rules.detected.without_tokens(),
    }
}

/// Makes the answer what its agent gets. `value` is the body where it has been read as JSON.
pub(super) async fn show(
    app: &App,
    asker: Asker<'_>,
    answer: &mut ApiAnswer,
    value: Option<Value>,
) {
    let Some(rules) = asker.tool.answer_rules else {
        return;
    };
    if !asker.is_agent {
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
    let marks = &asker.tool.output_marks;
    let Some(run) = asker.run else {
        if let Some(seen) = seen(marks, &body, View::new(masking(rules))) {
            replace(answer, seen.into());
        }
        return;
    };
    let mut issued = Issued::of(app, run);
    let mut refer = |class: &str, value: &Value| issued.refer(class, value);
    let mut seen = seen(marks, &body, View::referring(rules, &mut refer));
    if !issued.new.is_empty() && !references::keep(app, run, issued.new).await {
        seen = self::seen(marks, &body, View::new(masking(rules)));
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
