//! Lending one's right to vote to a named person until a moment: only what one holds oneself, never what was lent to one, and
//! never without an end. Each grant and each end is an entry, and each vote that uses one names it.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::json;

use crate::{
    app::App,
    audit::ActError,
    clock::{self, Timestamp},
    composition::holds,
    entry::{Entry, Kind},
    ids::DelegationId,
    quorum::Member,
    reason::{Reason, Refusal},
    store::{
        self,
        delegations::{Added, DelegationRow, NewDelegation},
    },
};

/// Delegations of one person that may be in force at a time.
const MOST: i64 = 50;

/// What an operator lends.
#[derive(Debug)]
pub struct Lending {
    /// Whose right.
    pub from: Arc<str>,
    /// To whom.
    pub to: String,
    /// Roles of their own.
    pub roles: Vec<String>,
    /// Groups of their own.
    pub groups: Vec<String>,
    /// Tiers in which they lend all they hold.
    pub tiers: Vec<String>,
    /// When it ends.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
}

/// Adds a delegation.
///
/// # Errors
/// `malformed_body` with what is wrong, `rate_limited`, or the database is away.
pub async fn grant(app: &App, lending: Lending) -> Result<DelegationRow, Refusal> {
    check(app, &lending)?;
    let id = DelegationId::generate();
    let longest = app.config.limits.longest_delegation;
    let added = app
        .recorder
        .act({
            let id = id.clone();
            move |connection| {
                async move {
                    let new = NewDelegation {
                        delegation_id: &id,
                        from_operator: &lending.from,
                        to_operator: &lending.to,
                        roles: &lending.roles,
                        groups: &lending.groups,
                        tiers: &lending.tiers,
                        reason: &lending.reason,
                        ends_at: lending.until,
                        longest_seconds: longest.as_secs_f64(),
                        most: MOST,
                    };
                    let added = store::delegations::add(connection, &new).await?;
                    let entries = match added {
                        Added::Yes => vec![granted_entry(&id, &lending)],
                        Added::WrongEnd | Added::TooMany => Vec::new(),
                    };
                    Ok((entries, added))
                }
                .boxed()
            }
        })
        .await
        .map_err(unrecorded)?;
    match added {
        Added::Yes => find(app, id.as_str()).await,
        Added::WrongEnd => Err(malformed(&format!(
            "\"until\" must be later than now and at most {} seconds from now",
            longest.as_secs()
        ))),
        Added::TooMany => Err(Refusal::new(
            Reason::RateLimited,
            format!(
                "{MOST} delegations of yours are in force, which is as many as may. Nothing was lent: end one first."
            ),
        )),
    }
}

fn check(app: &App, lending: &Lending) -> Result<(), Refusal> {
    let from = &*lending.from;
    if lending.to == from {
        return Err(malformed("nobody lends to themself"));
    }
    if !app.config.operators.contains_key(lending.to.as_str()) {
        return Err(malformed(&format!("{:?} is no operator", lending.to)));
    }
    if lending.roles.is_empty() && lending.groups.is_empty() && lending.tiers.is_empty() {
        return Err(malformed(
            "name at least one of your roles, groups or tiers",
        ));
    }
    let roles = lending.roles.iter().cloned().map(Member::Role);
    let groups = lending.groups.iter().cloned().map(Member::Group);
    for member in roles.chain(groups) {
        if !holds(app, from, &member) {
            return Err(malformed(&format!(
                "you do not hold {member} yourself; what was lent to you cannot be lent on"
            )));
        }
    }
    for name in &lending.tiers {
        let held = app.config.tiers.get(name.as_str()).is_some_and(|tier| {
            tier.requires
                .iter()
                .any(|needs| holds(app, from, &needs.member))
        });
        if !held {
            return Err(malformed(&format!(
                "you hold nothing that a tier {name:?} asks for; what was lent to you cannot be lent on"
            )));
        }
    }
    Ok(())
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Reason::MalformedBody, format!("Nothing was lent: {why}."))
}

/// The delegation of that id.
///
/// # Errors
/// `not_found`, or the database is away.
pub async fn find(app: &App, id: &str) -> Result<DelegationRow, Refusal> {
    let unknown = || Refusal::new(Reason::NotFound, "There is no delegation of this id.");
    if id.parse::<DelegationId>().is_err() {
        return Err(unknown());
    }
    let found = async {
        let mut connection = app.pool.acquire().await?;
        store::delegations::find(&mut connection, id).await
    };
    found
        .await
        .map_err(|error| unrecorded(ActError::Store(error)))?
        .ok_or_else(unknown)
}

/// Ends a delegation before its time. Votes that used it and have not been acted on count no longer.
///
/// # Errors
/// `conflict` when it is over, or the database is away.
pub async fn revoke(
    app: &App,
    row: DelegationRow,
    operator: &Arc<str>,
    reason: String,
) -> Result<(), Refusal> {
    let operator = Arc::clone(operator);
    let revoked = app
        .recorder
        .act(move |connection| {
            async move {
                let id = &row.delegation_id;
                let revoked =
                    store::delegations::revoke(connection, id, &operator, &reason).await?;
                let entry = Entry {
                    operator: Some(operator),
                    decided_at: Some(clock::now()),
                    words: Some(reason),
                    detail: Some(json!({
                        "delegation": id,
                        "from": row.from_operator,
                        "to": row.to_operator,
                    })),
                    ..Entry::new(Kind::DelegationRevoked)
                };
                Ok((if revoked { vec![entry] } else { Vec::new() }, revoked))
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)?;
    if revoked {
        Ok(())
    } else {
        Err(Refusal::new(
            Reason::Conflict,
            "This delegation is over already; nothing was changed.",
        ))
    }
}

fn unrecorded(error: ActError) -> Refusal {
    tracing::warn!(%error, "delegations could not be read or changed");
    Refusal::record_unavailable()
}

fn granted_entry(id: &DelegationId, lending: &Lending) -> Entry {
    Entry {
        operator: Some(Arc::clone(&lending.from)),
        decided_at: Some(clock::now()),
        words: Some(lending.reason.clone()),
        detail: Some(json!({
            "delegation": id,
            "to": lending.to,
            "roles": lending.roles,
            "groups": lending.groups,
            "tiers": lending.tiers,
            "until": lending.until,
        })),
        ..Entry::new(Kind::DelegationGranted)
    }
}
