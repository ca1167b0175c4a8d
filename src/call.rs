//! The words every other module shares: what a consequence is, and what is done with values of a sensitive class.

use serde::{Deserialize, Serialize};

/// What a tool's call does to the world. Everything but `Read` and `Write` is parked by the shipped
/// policies until a person approves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consequence {
    /// Looks at something and changes nothing.
    Read,
    /// Changes something that can be changed back.
    Write,
    /// Moves money.
    MoneyMovement,
    /// Changes who may do what.
    PermissionChange,
    /// Says something to somebody outside.
    ExternalCommunication,
    /// Destroys data.
    Destructive,
}

impl Consequence {
    /// Every consequence, in the order in which the documentation lists them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::MoneyMovement,
        Self::PermissionChange,
        Self::ExternalCommunication,
        Self::Destructive,
    ];

    /// The name used in contracts, policies, audit rows and the REST interfaces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::MoneyMovement => "money_movement",
            Self::PermissionChange => "permission_change",
            Self::ExternalCommunication => "external_communication",
            Self::Destructive => "destructive",
        }
    }
}

impl std::fmt::Display for Consequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What somebody gets in the place of a value of a sensitive class. A later one says less.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ClassRule {
    /// The value.
    #[default]
    Pass,
    /// A reference that only the gateway turns back, only in the same run.
    Token,
    /// What the class allows to be seen of it, such as the last four digits of a card.
    Mask,
    /// Nothing.
    Drop,
}

/// A rule for each class of `x-sensitivity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByClass {
    /// Credentials.
    pub secret: ClassRule,
    /// Personal data.
    pub pii: ClassRule,
    /// What is nobody else's business.
    pub confidential: ClassRule,
}

impl ByClass {
    /// The classes, as contracts name them.
    pub const CLASSES: [&str; 3] = ["secret", "pii", "confidential"];

    /// The rule of a class. One that is not known is as good as the strictest.
    pub const fn of(&self, class: &str) -> ClassRule {
        match class.as_bytes() {
            b"pii" => self.pii,
            b"confidential" => self.confidential,
            _ => self.secret,
        }
    }

    /// Sets the rule of a class.
    pub fn set(&mut self, class: &str, rule: ClassRule) {
        match class {
            "pii" => self.pii = rule,
            "confidential" => self.confidential = rule,
            _ => self.secret = rule,
        }
    }

    /// The same without references, where none can be given.
    #[must_use]
    pub fn without_tokens(mut self) -> Self {
        for class in Self::CLASSES {
            if self.of(class) == ClassRule::Token {
                self.set(class, ClassRule::Mask);
            }
        }
        self
    }
}

/// Rules for values that a contract marks, and for values that only the detectors know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassRules {
    /// For marked values.
    pub marked: ByClass,
    /// For values that no contract marks.
    pub detected: ByClass,
}
