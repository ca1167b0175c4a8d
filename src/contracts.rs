//! Contracts: what a tool is, which arguments it takes, and how a call of it looks on the wire.
//!
//! A contract is read once, checked whole, closed against what its author did not think of, and compiled.
//! After that it answers three questions without deciding anything itself: which tool and arguments does
//! a request mean, are the arguments what the contract allows, and what request do they make.

mod amount;
mod assemble;
mod binding;
mod body;
mod catalog;
mod close;
mod effects;
mod fallback;
mod form;
mod heading;
mod inbound;
mod lint;
mod load;
mod outbound;
mod reader;
pub mod schema;
mod source;
mod template;
mod violation;
mod wiring;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use http::{HeaderName, Method};
use jsonschema::Validator;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    amount::{Amount, CurrencyOf, Unit},
    binding::{BodyFormat, NotABodyFormat},
    catalog::{Catalog, Matched, RouteError},
    effects::{Before, OnFailure, Preview, Reading},
    fallback::WhileHalted,
    inbound::RequestError,
    load::load,
    outbound::{BuildError, UpstreamRequest},
    violation::{MAX_VIOLATIONS, Violation},
};
use crate::call::{ClassRule, Consequence};

/// One tool, as its contract describes it.
pub struct Contract {
    /// Unique name, such as `desk.refunds.create`; its first segment is the API.
    pub name: String,
    /// What the tool does, for agents and approvers.
    pub description: String,
    /// The API that the tool belongs to.
    pub api: String,
    /// The HTTP method.
    pub method: Method,
    /// The path template as written, such as `/refunds/{id}`.
    pub path: String,
    /// The scope that a call needs.
    pub scope: String,
    /// What a call does to the world.
    pub consequence: Consequence,
    /// The schema of the arguments in closed form, as agents are shown it.
    pub input: Value,
    /// The schema of JSON answers, if the contract has one.
    pub output: Option<Value>,
    /// What happens to an answer that breaks `output`.
    pub on_output_violation: OnOutputViolation,
    /// Whether the answer is passed on as it comes.
    pub stream: bool,
    /// Whether the same request may be sent again after a failure.
    pub idempotent: bool,
    /// The request header by which the API recognises a request that it has had before; the call's id travels in it.
    pub idempotency_header: Option<HeaderName>,
    /// What becomes of a call that a kill switch covers.
    pub while_halted: WhileHalted,
    /// Bounds of one call.
    pub limits: Limits,
    /// The read that fetches the state before.
    pub before: Option<Before>,
    /// The read that shows approvers what the call will touch.
    pub preview: Option<Preview>,
    /// JSON pointers to those parts of a 2xx answer that tell what was changed.
    pub changed: Vec<String>,
    /// The money that a call is about, for people to read.
    pub amount: Option<Amount>,
    /// What agents get of values of a class in the answers of this tool, where that is not as the config says.
    pub answers: BTreeMap<String, ClassRule>,
    /// `sha256:` and the digest of `canonical`: the contract's version.
    pub digest: String,
    /// The whole contract in closed form, as RFC 8785 text.
    pub canonical: String,
    validator: Validator,
    output_validator: Option<Validator>,
    binding: binding::Binding,
}

/// What happens to an answer that breaks the output schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOutputViolation {
    /// The agent does not get it.
    #[default]
    Refuse,
    /// The agent gets it, and the violation is recorded.
    Report,
}

/// Bounds of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub body_bytes: usize,
    /// Largest answer, in bytes.
    pub answer_bytes: usize,
    /// Longest wait for the whole answer, in milliseconds.
    pub timeout_ms: u64,
}

impl Limits {
    /// Longest wait for the whole answer.
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 65_536,
            answer_bytes: 1_048_576,
            timeout_ms: 10_000,
        }
    }
}

impl Contract {
    /// Checks arguments: the closed input schema, and that every value can be sent in its place.
    ///
    /// # Errors
    ///
    /// At most [`MAX_VIOLATIONS`] violations, none of which quotes a value.
    pub fn validate(&self, arguments: &Value) -> Result<(), Vec<Violation>> {
        violation::check(&self.validator, arguments)?;
        match arguments
            .as_object()
            .and_then(|arguments| self.unsendable(arguments))
        {
            Some(violation) => Err(vec![violation]),
            None => Ok(()),
        }
    }

    /// Checks a JSON answer against the output schema, if there is one and the status is 2xx.
    ///
    /// # Errors
    ///
    /// At most [`MAX_VIOLATIONS`] violations, none of which quotes a value.
    pub fn validate_output(&self, status: u16, body: &Value) -> Result<(), Vec<Violation>> {
        match &self.output_validator {
            Some(validator) if (200..300).contains(&status) => violation::check(validator, body),
            _ => Ok(()),
        }
    }

    /// The body formats that the tool takes, the default first; none if it takes no body.
    pub fn body_formats(&self) -> Vec<BodyFormat> {
        self.binding.body.formats()
    }
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract")
            .field("name", &self.name)
            .field("method", &self.method)
            .field("path", &self.path)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}
