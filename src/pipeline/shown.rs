//! What an agent gets of an answer's sensitive values: a rule for each class, from the config and the contract. What is recorded
//! is made before, of the answer as it came; what is kept for the same request to come is made after, so that it gets the same.
//! Where a rule may apply and nobody can say to what, the answer is withheld.

use bytes::Bytes;
use http::header;
use serde_json::{Value, json};

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
    reason::{Reason, Refusal},
    redaction::{Marks, View},
    runs::Run,
};

/// An answer as it can be looked at.
enum Body<'a> {
    /// What fits the contract.
    Fitting(Value),
    /// What is JSON, of which the contract does not say where anything stands: an error, or an answer that breaks the contract.
    Json(Value),
    Text(&'a str),
}

impl<'a> Body<'a> {
    /// Reads what does not fit a contract, whatever its headers call it: whoever gets it reads it as they like.
    fn read(body: &'a [u8], must_be_json: bool) -> Result<Self, String> {
        match (json::parse(body), std::str::from_utf8(body)) {
            (Ok(value), _) => Ok(Self::Json(value)),
            (Err(error), Ok(text)) => {
                // What is written in two bytes a letter may well be UTF-8, with this character in between.
                if must_be_json || text.contains('\0') {
                    Err(error.to_string())
                } else {
                    Ok(Self::Text(text))
                }
            }
            (Err(error), Err(_)) => Err(error.to_string()),
        }
    }
}

/// The refusal of an answer to which the rules cannot be applied: it came, and its agent does not get it.
fn withheld(answer: &ApiAnswer, why: String) -> Refusal {
    let mut refusal = Refusal::new(
        Reason::UpstreamAnswerInvalid,
        format!(
            "The API answered with status {}, but the rules for sensitive values cannot be applied to the body, which is withheld. Its digest in the records is {}. The call may have had its effect: do not repeat it; tell an operator.",
            answer.status.as_u16(),
            answer.seen.digest.as_deref().unwrap_or("not known"),
        ),
    );
    refusal.executed = Some(true);
    let mut violations = answer
        .violation
        .as_ref()
        .and_then(|violation| violation.get("output"))
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if violations.is_empty() {
        violations.push(json!({"pointer": "", "message": why}));
    }
    refusal.audit_detail = Some(json!({ "output": violations, "withheld_under_rules": true }));
    refusal
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

/// Makes the answer what its agent gets. `value` is the body where it has been read and fits the contract.
///
/// # Errors
/// A rule other than `pass` may apply to the answer, and it cannot be said to what: it must be withheld.
pub(super) async fn show(
    app: &App,
    asker: Asker<'_>,
    answer: &mut ApiAnswer,
    value: Option<Value>,
) -> Result<(), Refusal> {
    let Some(rules) = asker.tool.answer_rules else {
        return Ok(());
    };
    if !asker.is_agent || answer.body.is_empty() {
        return Ok(());
    }
    let whole = answer.body.clone();
    let body = match value {
        Some(value) => Body::Fitting(value),
        None => {
            let must_be_json =
                is_json(&answer.headers) || asker.tool.output_marks.has_rule(&rules.marked);
            Body::read(&whole, must_be_json).map_err(|why| withheld(answer, why))?
        }
    };
    let marks = &asker.tool.output_marks;
    let Some(run) = asker.run else {
        if let Some(seen) = seen(marks, &body, View::new(masking(rules))) {
            replace(answer, seen.into());
        }
        return Ok(());
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
    Ok(())
}

/// The body as it is seen, if that is another than it is.
fn seen(marks: &Marks, body: &Body<'_>, mut view: View<'_>) -> Option<String> {
    let seen = match body {
        Body::Fitting(value) => {
            let mut copy = value.clone();
            view.apply(marks, &mut copy);
            copy.to_string()
        }
        Body::Json(value) => {
            let mut copy = value.clone();
            view.apply_anywhere(marks, &mut copy);
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
