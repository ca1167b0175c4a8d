//! The words every other module shares: what a consequence is.

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
