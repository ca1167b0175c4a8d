//! The last step of loading: a contract from its parts, and its text in full for the digest.

use serde_json::{Value, json};

use super::{
    Contract,
    binding::{Binding, Body, BodyFormat},
    effects::Effects,
    fallback::WhileHalted,
    heading::Heading,
    load::Options,
};
use crate::json;

/// The compiled schemas.
pub(super) struct Compiled {
    pub(super) validator: Option<jsonschema::Validator>,
    /// Nothing if it could not be compiled, `Some(None)` if the contract has no output schema.
    pub(super) output_validator: Option<Option<jsonschema::Validator>>,
}

/// Puts a contract together. `None` if a part is missing, which has been reported then.
pub(super) fn assemble(
    heading: Heading,
    input: Value,
    output: Option<Value>,
    options: Options,
    effects: Effects,
    binding: Binding,
    compiled: Compiled,
) -> Option<Contract> {
    let mut contract = Contract {
        name: heading.name?.value,
        description: heading.description?.value,
        api: heading.api?.value,
        method: heading.method?.value,
        path: heading.path?.value,
        scope: heading.scope?.value,
        consequence: heading.consequence?,
        input,
        output,
        on_output_violation: options.on_output_violation,
        stream: options.stream,
        idempotent: options.idempotent,
        idempotency_header: options.fallback.idempotency_header,
        while_halted: options.fallback.while_halted,
        limits: options.limits,
        before: effects.before,
        preview: effects.preview,
        changed: effects.changed,
        amount: effects.amount,
        answers: effects.answers,
        digest: String::new(),
        canonical: String::new(),
        validator: compiled.validator?,
        output_validator: compiled.output_validator?,
        binding,
    };
    let bytes = json::canonical(&in_full(&contract));
    contract.digest = format!("sha256:{}", json::sha256_hex(&bytes));
    contract.canonical = String::from_utf8(bytes).ok()?;
    Some(contract)
}

/// The contract with every default written out: what its digest is of.
fn in_full(contract: &Contract) -> Value {
    let binding = &contract.binding;
    let query: Vec<_> = binding
        .query
        .iter()
        .map(|parameter| &parameter.property)
        .collect();
    let headers: serde_json::Map<String, Value> = binding
        .headers
        .iter()
        .map(|(header, parameter)| {
            (
                header.as_str().to_owned(),
                Value::from(parameter.property.as_str()),
            )
        })
        .collect();
    let mut whole = json!({
        "name": contract.name,
        "description": contract.description,
        "api": contract.api,
        "method": contract.method.as_str(),
        "path": contract.path,
        "scope": contract.scope,
        "consequence": contract.consequence.as_str(),
        "query": query,
        "headers": headers,
        "body": body_in_full(&binding.body),
        "input": contract.input,
        "output": contract.output,
        "on_output_violation": contract.on_output_violation,
        "stream": contract.stream,
        "idempotent": contract.idempotent,
        "limits": contract.limits,
    });
    // Only where they say something, so that a contract that never heard of them keeps its digest.
    if let Some(whole) = whole.as_object_mut() {
        if let Some(before) = &contract.before {
            whole.insert("before".to_owned(), json!(before));
        }
        if let Some(preview) = &contract.preview {
            whole.insert("preview".to_owned(), json!(preview));
        }
        if let Some(header) = &contract.idempotency_header {
            whole.insert("idempotency_header".to_owned(), json!(header.as_str()));
        }
        if contract.while_halted != WhileHalted::default() {
            whole.insert("while_halted".to_owned(), json!(contract.while_halted));
        }
        if !contract.changed.is_empty() {
            whole.insert("changed".to_owned(), json!(contract.changed));
        }
        if let Some(amount) = &contract.amount {
            whole.insert("amount".to_owned(), json!(amount));
        }
        if !contract.answers.is_empty() {
            whole.insert("answers".to_owned(), json!(contract.answers));
        }
    }
    whole
}

fn body_in_full(body: &Body) -> Value {
    let names = |formats: &[BodyFormat]| -> Vec<String> {
        formats.iter().map(BodyFormat::to_string).collect()
    };
    match body {
        Body::None => Value::Null,
        Body::Fields(formats) => json!({ "formats": names(formats) }),
        Body::Argument { property, formats } => {
            json!({ "formats": names(formats), "argument": property })
        }
        Body::Opaque {
            property,
            media_types,
            ..
        } => json!({ "formats": ["opaque"], "argument": property, "media_types": media_types }),
    }
}
