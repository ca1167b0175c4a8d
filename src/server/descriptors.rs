//! How many connections each listener may hold, so that agents, with or without a key, never take the file descriptors that
//! operators, the database and the APIs need: the kill switch has to be within reach.

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For the database, the sinks, the destinations, the files and the listeners themselves.
const OWN: u64 = 256;
/// Connections of operators at the most, where the descriptors are few.
const OPERATORS: u64 = 256;
/// With fewer there is no gateway.
const LEAST: u64 = 16;

/// Connections that each listener holds at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    pub agents: usize,
    pub operators: usize,
}

/// Raises the limit of this process as far as it is wanted and allowed, and shares it out. `wanted` connections for each
/// listener, `upstream` to the APIs.
///
/// # Errors
/// When there are too few for a gateway.
pub(super) fn share(wanted: usize, upstream: usize) -> anyhow::Result<Shares> {
    let (wanted, upstream) = (u64::try_from(wanted)?, u64::try_from(upstream)?);
    let needed = wanted
        .saturating_mul(2)
        .saturating_add(upstream)
        .saturating_add(OWN);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut limit = current.unwrap_or(u64::MAX);
    if limit < needed {
        limit = needed.min(maximum.unwrap_or(u64::MAX)).max(limit);
        let raised = Rlimit {
            current: Some(limit),
            maximum,
        };
        setrlimit(Resource::Nofile, raised).context("the limit of open files cannot be raised")?;
    }
    let shares = out_of(limit, wanted, upstream)?;
    if shares.agents < usize::try_from(wanted)? {
        tracing::warn!(
            limit,
            needed,
            agents = shares.agents,
            operators = shares.operators,
            "fewer connections than limits.max_connections: this process may open too few files (ulimit -n)"
        );
    }
    Ok(shares)
}

/// What goes to the APIs is given up first, to a half; then the agents' share.
fn out_of(limit: u64, wanted: u64, upstream: u64) -> anyhow::Result<Shares> {
    let left = limit.saturating_sub(OWN);
    let left = left.saturating_sub(upstream.min(left / 2));
    let operators = wanted.min((left / 2).min(OPERATORS).max(left.saturating_sub(wanted)));
    let agents = wanted.min(left.saturating_sub(operators));
    anyhow::ensure!(
        agents >= LEAST.min(wanted) && operators >= LEAST.min(wanted),
        "this process may open {limit} files, which is too few: raise the limit (ulimit -n, LimitNOFILE=) to {} or more",
        OWN + 4 * LEAST
    );
    Ok(Shares {
        agents: usize::try_from(agents)?,
        operators: usize::try_from(operators)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_and_what_is_kept_back_never_exceed_the_limit() {
        for limit in [320, 400, 1_024, 4_096, 65_536, u64::MAX] {
            for wanted in [1, 60, 4_096] {
                for upstream in [0, 100, 100_000] {
                    let shares = out_of(limit, wanted, upstream).unwrap();
                    let given = (shares.agents + shares.operators) as u64;
                    assert!(
                        given + OWN <= limit,
                        "{limit} {wanted} {upstream}: {shares:?}"
                    );
                    assert!(shares.agents as u64 <= wanted && shares.operators as u64 <= wanted);
                    assert!(shares.operators as u64 >= LEAST.min(wanted));
                }
            }
        }
        let all = out_of(65_536, 4_096, 1_000).unwrap();
        assert_eq!((all.agents, all.operators), (4_096, 4_096));
        assert!(out_of(256, 4_096, 0).is_err());
    }
}
