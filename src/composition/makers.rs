//! Who asked for a call, and therefore has no say in it: the agent's owner, then and now, and whoever triggered the run.

use unicode_normalization::UnicodeNormalization as _;

use crate::{
    app::{App, Setting},
    store::approvals::ApprovalRow,
};

/// Words before a name that say it is a person's.
const KINDS: [&str; 8] = [
    "operator", "user", "person", "human", "mailto", "acct", "email", "owner",
];

/// What is known of who asked for a call.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The agent that made it.
    pub agent: &'a str,
    /// Who answered for that agent then, where it was kept.
    pub owner: Option<&'a str>,
    /// Who the agent said had triggered the run.
    pub triggered_by: &'a str,
}

/// Whether this operator is one of those who asked for the call that waits for an approval.
pub fn is_maker(app: &App, row: &ApprovalRow, operator: &str) -> bool {
    let origin = Origin {
        agent: &row.agent,
        owner: Some(&row.owner),
        triggered_by: &row.triggered_by,
    };
    asked_for(app.setting(), origin, operator)
}

/// The same of any call.
pub fn asked_for(setting: Setting<'_>, origin: Origin<'_>, operator: &str) -> bool {
    let owns_it_now = setting
        .config
        .agents
        .get(origin.agent)
        .is_some_and(|agent| *agent.owner == *operator);
    origin.owner == Some(operator) || owns_it_now || is_person(origin.triggered_by, operator)
}

/// Whether a run's `triggered_by`, which the agent wrote, names this person: by the bare name, as `operator:name`, `user/name`,
/// `@name` or `name@host`, in any case, with any separators, and in any characters that look the same to Unicode (NFKC).
/// When in doubt it is them: somebody else can decide.
fn is_person(triggered_by: &str, operator: &str) -> bool {
    let folded: String = triggered_by
        .nfkc()
        .flat_map(char::to_lowercase)
        .filter(|character| character.is_ascii_graphic() || character.is_alphanumeric())
        .collect();
    let mut rest = folded.as_str();
    loop {
        rest = rest.trim_start_matches(['@', ':', '/', '=', '<', '"', '\'', '(']);
        let local = rest.split('@').next().unwrap_or(rest);
        if same(rest, operator) || same(local, operator) {
            return true;
        }
        let Some((kind, name)) = rest.split_once([':', '/', '=']) else {
            return false;
        };
        if !KINDS.iter().any(|known| same(kind, known)) {
            return false;
        }
        rest = name;
    }
}

/// The same letters and digits.
fn same(text: &str, name: &str) -> bool {
    let skeleton = |text: &'_ str| -> Vec<char> {
        text.chars()
            .filter(|character| character.is_alphanumeric())
            .collect()
    };
    skeleton(text) == skeleton(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_triggered_the_run_is_recognised_in_every_spelling() {
        for text in [
            "ada",
            "Ada",
            "operator:ada",
            "user:ada",
            "Human : ada",
            " ADA ",
            "user/ada",
            "operator=ada",
            "user:operator:ada",
            "@ada",
            "ada@example.com",
            "mailto:Ada@example.com",
            "<ada@example.com>",
            "\u{ff41}\u{ff44}\u{ff41}",
            "a\u{200b}d\u{200d}a",
            "operator:\u{202e}ada",
        ] {
            assert!(is_person(text, "ada"), "{text:?}");
        }
        for text in [
            "ada-lovelace",
            "Ada Lovelace",
            "ada.lovelace",
            "user:ADA_LOVELACE@host",
        ] {
            assert!(is_person(text, "ada-lovelace"), "{text:?}");
        }
        for text in [
            "schedule:nightly",
            "adam",
            "ticket:ada",
            "ad",
            "",
            "user:",
            "user:bob",
        ] {
            assert!(!is_person(text, "ada"), "{text:?}");
        }
    }
}
