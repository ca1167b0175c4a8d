//! Values that an agent handles without knowing them: it gets `tg_ref_…` in the place of a value, and the gateway alone turns that
//! back, only in the same run (which is one agent's), only as a whole argument that the contract marks with the value's class,
//! and before anything is checked, decided or sent. What is recorded of such an argument is what is recorded of the value.

use std::collections::HashMap;

use futures::FutureExt as _;
use serde_json::Value;

use super::Caller;
use crate::{
    app::{App, Tool},
    contracts::MAX_VIOLATIONS,
    json,
    reason::{FieldError, Reason, Refusal},
    runs::Run,
    store::{self, StoreError, references::NewReference},
};

/// How every reference begins. No argument may hold it in any other way.
const PREFIX: &str = "tg_ref_";

/// Hexadecimal digits behind it.
const DIGITS: usize = 40;

/// References that are made while an answer is looked at.
pub(super) struct Issued<'a> {
    app: &'a App,
    run: &'a str,
    pub new: Vec<NewReference>,
}

impl<'a> Issued<'a> {
    pub fn of(app: &'a App, run: &'a Run) -> Self {
        Self {
            app,
            run: run.id.as_str(),
            new: Vec::new(),
        }
    }

    /// The reference of a value: always the same one in the same run. Nothing where there are too many.
    pub fn refer(&mut self, class: &str, value: &Value) -> Option<String> {
        let most = usize::try_from(self.app.config.limits.max_references_per_run).unwrap_or(0);
        let plain = json::canonical(value);
        let keys = &self.app.keyring;
        let reference = format!("{PREFIX}{}", keys.reference(self.run, class, &plain));
        if self.new.iter().any(|known| known.reference == reference) {
            return Some(reference);
        }
        if self.new.len() >= most {
            return None;
        }
        let sealed = keys.seal(&context(self.run, &reference), &plain).ok()?;
        self.new.push(NewReference {
            reference: reference.clone(),
            class: class.to_owned(),
            sealed,
        });
        Some(reference)
    }
}

/// What a value is sealed for: this reference of this run and nothing else.
fn context(run: &str, reference: &str) -> String {
    format!("reference {run} {reference}")
}

/// Keeps references, so that they stand before the agent gets them. False when it cannot have them: nothing could be done with those
/// of a run that is over, and a run knows only so many.
pub(super) async fn keep(app: &App, run: &Run, new: Vec<NewReference>) -> bool {
    let (id, most) = (run.id.clone(), app.config.limits.max_references_per_run);
    let kept = app
        .recorder
        .act(move |connection| {
            async move {
                store::references::add(connection, &id, &new, most).await?;
                Ok((Vec::new(), ()))
            }
            .boxed()
        })
        .await;
    if let Err(error) = &kept {
        tracing::warn!(%error, run = %run.id, "an answer's references could not be kept; the values are masked");
    }
    kept.is_ok()
}

/// Puts the values in the places of their references. Asks the database only where there is a reference.
///
/// # Errors
/// 422 with a pointer to each reference that is not one of this run, not a whole value, or not accepted where it stands.
pub(super) async fn resolve(
    app: &App,
    caller: &Caller,
    tool: &Tool,
    arguments: &mut Value,
) -> Result<(), Refusal> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    look(arguments, &mut String::new(), &mut found, &mut errors);
    if found.is_empty() && errors.is_empty() {
        return Ok(());
    }
    let known = kept(app, caller, &found).await?;
    for (pointer, reference) in found {
        match value_of(app, caller, tool, &known, &pointer, &reference) {
            Ok(value) => {
                if let Some(place) = arguments.pointer_mut(&pointer) {
                    *place = value;
                }
            }
            Err(message) => errors.push(error(&pointer, message)),
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    errors.truncate(MAX_VIOLATIONS);
    let mut refusal = Refusal::new(
        Reason::InvalidArguments,
        "A reference (tg_ref_…) among the arguments cannot be used as it is; \"errors\" names each. Nothing was sent: correct them and call again.",
    );
    refusal.errors = errors;
    Err(refusal)
}

async fn kept(
    app: &App,
    caller: &Caller,
    found: &[(String, String)],
) -> Result<HashMap<String, (String, Vec<u8>)>, Refusal> {
    if found.is_empty() {
        return Ok(HashMap::new());
    }
    let references: Vec<String> = found.iter().map(|(_, text)| text.clone()).collect();
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::references::find(&mut connection, &caller.run.id, &references).await
    };
    let rows = rows.await.map_err(|error: StoreError| {
        tracing::warn!(%error, "references could not be looked up");
        Refusal::record_unavailable()
    })?;
    Ok(rows
        .into_iter()
        .map(|row| (row.reference, (row.class, row.sealed)))
        .collect())
}

fn value_of(
    app: &App,
    caller: &Caller,
    tool: &Tool,
    known: &HashMap<String, (String, Vec<u8>)>,
    pointer: &str,
    reference: &str,
) -> Result<Value, &'static str> {
    let (class, sealed) = known.get(reference).ok_or(
        "is no reference of this run: it was made up, belongs to another run or agent, or was erased when its run ended. Read the value again in this run and pass the reference that you get",
    )?;
    if !tool.marks.classes_at(pointer).contains(&class.as_str()) {
        return Err(
            "is a reference to a value of a class that this argument does not accept: it accepts those of its own x-sensitivity, which GET /v1/tools shows",
        );
    }
    let context = context(caller.run.id.as_str(), reference);
    app.keyring
        .open(&context, sealed)
        .ok()
        .and_then(|plain| serde_json::from_slice(&plain).ok())
        .ok_or("is a reference whose value was sealed with a master secret that the gateway no longer has. Read the value again")
}

fn error(pointer: &str, message: &str) -> FieldError {
    FieldError {
        pointer: pointer.to_owned(),
        message: message.to_owned(),
    }
}

/// Collects the whole references, and what is wrong with the others. Copies nothing where there is none.
fn look(
    value: &Value,
    pointer: &mut String,
    found: &mut Vec<(String, String)>,
    errors: &mut Vec<FieldError>,
) {
    match value {
        Value::String(text) if text.contains(PREFIX) => {
            if is_reference(text) {
                found.push((pointer.clone(), text.clone()));
            } else {
                errors.push(error(
                    pointer,
                    "holds tg_ref_, which stands only for the whole of a value: pass a reference alone and exactly as it was given",
                ));
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                at(pointer, &number.to_string(), |pointer| {
                    look(item, pointer, found, errors);
                });
            }
        }
        Value::Object(object) => {
            for (name, child) in object {
                if name.contains(PREFIX) {
                    errors.push(error(
                        pointer,
                        "has a property whose name holds tg_ref_: a reference stands only for a value",
                    ));
                }
                at(pointer, name, |pointer| look(child, pointer, found, errors));
            }
        }
        _ => {}
    }
}

fn at(pointer: &mut String, token: &str, then: impl FnOnce(&mut String)) {
    let length = pointer.len();
    pointer.push('/');
    if token.contains(['~', '/']) {
        pointer.push_str(&token.replace('~', "~0").replace('/', "~1"));
    } else {
        pointer.push_str(token);
    }
    then(pointer);
    pointer.truncate(length);
}

fn is_reference(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == DIGITS
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}
