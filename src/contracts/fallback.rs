//! What a contract says for when things do not go as they should: how the API recognises a request that it has had before, and
//! whether people do by hand what may not be sent.

use http::HeaderName;
use serde::Serialize;

use super::{binding, reader::Reader, source::Node};

/// What becomes of a call that a kill switch covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhileHalted {
    /// It is refused.
    #[default]
    Refuse,
    /// If scopes and policies permit it, it waits on the work list for an operator to do it by hand.
    WorkList,
}

/// Both fields together.
pub(super) struct Fallback {
    pub(super) idempotency_header: Option<HeaderName>,
    pub(super) while_halted: WhileHalted,
}

pub(super) fn read(reader: &mut Reader<'_>, tool: &Node) -> Fallback {
    Fallback {
        idempotency_header: idempotency_header(reader, tool),
        while_halted: tool
            .get("while_halted")
            .and_then(|(_, value)| reader.text(value, "`while_halted`"))
            .and_then(|text| {
                let choices = [
                    ("refuse", WhileHalted::Refuse),
                    ("work_list", WhileHalted::WorkList),
                ];
                reader.choice(&text, "way to treat a call while halted", &choices)
            })
            .unwrap_or_default(),
    }
}

fn idempotency_header(reader: &mut Reader<'_>, tool: &Node) -> Option<HeaderName> {
    let (_, value) = tool.get("idempotency_header")?;
    let text = reader.text(value, "`idempotency_header`")?;
    let header = binding::check_header(&text.value)
        .map_err(|problem| reader.error(&text.at, format!("`{}`: {problem}", text.value)))
        .ok()?;
    let taken = tool.get("headers").is_some_and(|(_, headers)| {
        headers
            .entries()
            .iter()
            .any(|(key, _)| key.name.eq_ignore_ascii_case(header.as_str()))
    });
    if taken {
        reader.error(
            &text.at,
            format!("`{header}` carries an argument already: the call's id cannot travel in it"),
        );
        return None;
    }
    Some(header)
}
