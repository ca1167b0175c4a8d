//! Pages of approvals. However a list is narrowed, and however its rows lie, a page looks at a bounded number of them: it goes
//! along one index for each state and tier, and where other filters leave too little of that, it ends early and says where.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::{ApprovalRow, STATES};
use crate::store::StoreError;

/// What a list shows.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "each narrows the list to rows with that value")]
pub struct Filter<'a> {
    /// Any of these; none for all.
    pub states: &'a [String],
    pub agent: Option<&'a str>,
    pub run: Option<&'a str>,
    pub tool: Option<&'a str>,
    pub consequence: Option<&'a str>,
    /// Waiting in any of these.
    pub tiers: Option<&'a [String]>,
    /// Rows behind this id.
    pub after: Option<&'a str>,
}

/// Rows looked at in each state and tier where no index is for all filters together, or where what is attached in lines takes
/// the place of a page's rows.
const LOOK: i64 = 1_000;

impl Filter<'_> {
    /// Whether one index holds just the rows of this list, but for states and tiers.
    fn has_its_index(&self) -> bool {
        let others = [self.agent, self.run, self.tool, self.consequence];
        others.into_iter().flatten().count() + usize::from(self.tiers.is_some()) <= 1
    }
}

/// A page.
#[derive(Debug)]
pub struct Listed {
    /// The approvals, in the order in which they were made.
    pub rows: Vec<ApprovalRow>,
    /// The id behind which the next page begins, where there may be one. A page may be short, or empty, and not be the last.
    pub after: Option<String>,
}

/// Approvals in the order in which they were made, at most `limit`; of those that wait in one line only its head.
///
/// # Errors
/// When the database is away.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Listed, StoreError> {
    if !filter.has_its_index() {
        return look_at(connection, filter, limit, LOOK.max(limit + 1)).await;
    }
    let mut page = look_at(connection, filter, limit, limit + 1).await?;
    let left = limit - i64::try_from(page.rows.len()).unwrap_or(limit);
    if let (Some(after), 1..) = (&page.after, left) {
        // What is attached stands in the same indexes as the heads.
        let behind = Filter {
            after: Some(after),
            ..*filter
        };
        let further = look_at(connection, &behind, left, LOOK.max(left + 1)).await?;
        page.rows.extend(further.rows);
        page.after = further.after;
    }
    Ok(page)
}

/// A page of at most `limit` rows out of the first `look` of each state and tier.
async fn look_at(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    limit: i64,
    look: i64,
) -> Result<Listed, StoreError> {
    let all = STATES.map(str::to_owned);
    let states = if filter.states.is_empty() {
        &all
    } else {
        filter.states
    };
    let mut ids = BTreeSet::new();
    // Up to here every way along an index has been looked at.
    let mut seen_to: Option<String> = None;
    let ways = states.iter().flat_map(|state| match filter.tiers {
        Some(tiers) => tiers.iter().map(|tier| (state, Some(tier))).collect(),
        None => vec![(state, None)],
    });
    for (state, tier) in ways {
        let found = match tier {
            Some(tier) => in_tier(connection, filter, (state, tier), look).await?,
            None => in_state(connection, filter, state, look).await?,
        };
        if let Some(last) = found.last()
            && i64::try_from(found.len()).unwrap_or(i64::MAX) >= look
            && seen_to.as_ref().is_none_or(|seen_to| last < seen_to)
        {
            seen_to = Some(last.clone());
        }
        ids.extend(found);
    }
    let ids: Vec<String> = ids
        .into_iter()
        .take_while(|id| seen_to.as_ref().is_none_or(|seen_to| id <= seen_to))
        .collect();
    let mut rows = read(connection, filter, (&ids, states), limit + 1).await?;
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    if rows.len() > most {
        rows.truncate(most);
        seen_to = rows.last().map(|row| row.approval_id.clone());
    }
    Ok(Listed {
        rows,
        after: seen_to,
    })
}

/// INVARIANT: each statement compares and sorts by all columns of its index, although the first are fixed: so no other index is
/// in that order, and PostgreSQL takes none that holds rows of other states or names, whatever it believes about their number.
async fn in_state(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    state: &str,
    look: i64,
) -> Result<Vec<String>, StoreError> {
    let after = filter.after.unwrap_or_default();
    let ids = if let Some(run) = filter.run {
        sqlx::query_scalar!(
            "SELECT approval_id FROM toolgate.approvals
             WHERE (run_id, state, approval_id) > ($1, $2, $3) AND (run_id, state) <= ($1, $2)
             ORDER BY run_id, state, approval_id LIMIT $4",
            run,
            state,
            after,
            look
        )
        .fetch_all(connection)
        .await?
    } else if let Some(agent) = filter.agent {
        sqlx::query_scalar!(
            "SELECT approval_id FROM toolgate.approvals
             WHERE (agent, state, approval_id) > ($1, $2, $3) AND (agent, state) <= ($1, $2)
             ORDER BY agent, state, approval_id LIMIT $4",
            agent,
            state,
            after,
            look
        )
        .fetch_all(connection)
        .await?
    } else if let Some(tool) = filter.tool {
        sqlx::query_scalar!(
            "SELECT approval_id FROM toolgate.approvals
             WHERE (tool, state, approval_id) > ($1, $2, $3) AND (tool, state) <= ($1, $2)
             ORDER BY tool, state, approval_id LIMIT $4",
            tool,
            state,
            after,
            look
        )
        .fetch_all(connection)
        .await?
    } else if let Some(consequence) = filter.consequence {
        sqlx::query_scalar!(
            "SELECT approval_id FROM toolgate.approvals
             WHERE (consequence, state, approval_id) > ($1, $2, $3) AND (consequence, state) <= ($1, $2)
             ORDER BY consequence, state, approval_id LIMIT $4",
            consequence,
            state,
            after,
            look
        )
        .fetch_all(connection)
        .await?
    } else {
        sqlx::query_scalar!(
            "SELECT approval_id FROM toolgate.approvals
             WHERE (state, approval_id) > ($1, $2) AND state <= $1
             ORDER BY state, approval_id LIMIT $3",
            state,
            after,
            look
        )
        .fetch_all(connection)
        .await?
    };
    Ok(ids)
}

async fn in_tier(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    (state, tier): (&str, &str),
    look: i64,
) -> Result<Vec<String>, StoreError> {
    let ids = sqlx::query_scalar!(
        "SELECT approval_id FROM toolgate.approval_tiers
         WHERE (tier, state, approval_id) > ($1, $2, $3) AND (tier, state) <= ($1, $2)
         ORDER BY tier, state, approval_id LIMIT $4",
        tier,
        state,
        filter.after.unwrap_or_default(),
        look
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

/// Those of these approvals that the filter leaves, without what is attached and waits. `OFFSET 0` makes it look up each by its id and nothing else.
async fn read(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    (ids, states): (&[String], &[String]),
    limit: i64,
) -> Result<Vec<ApprovalRow>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query_as!(
        ApprovalRow,
        r#"SELECT a.approval_id, call_id, run_id, agent, owner, triggered_by, api, tool, consequence, digest, policies,
                  state, created_at, expires_at, frozen_at, decided_at,
                  attached_to, permission_id, (state IN ('pending', 'approved') AND frozen_at IS NULL AND GREATEST(expires_at, decided_at + (expires_at - created_at)) <= now()) AS "overdue!"
           FROM unnest($1::text[]) AS wanted (id)
           CROSS JOIN LATERAL (
               SELECT * FROM toolgate.approvals AS a
               WHERE a.approval_id = wanted.id AND a.state = ANY($2)
                 AND (a.attached_to IS NULL OR a.state <> 'pending')
                 AND ($3::text IS NULL OR a.agent = $3) AND ($4::text IS NULL OR a.run_id = $4)
                 AND ($5::text IS NULL OR a.tool = $5) AND ($6::text IS NULL OR a.consequence = $6)
               OFFSET 0) AS a
           ORDER BY a.approval_id LIMIT $7"#,
        ids,
        states,
        filter.agent,
        filter.run,
        filter.tool,
        filter.consequence,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
