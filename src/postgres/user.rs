//! Which operating-system user the database runs as, and whether that user can get to its directory.
//!
//! PostgreSQL refuses to run as root, so a gateway started as root gives the database a user of its own;
//! any other gateway shares its own user with the database.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::Error;

/// The accounts a root gateway tries for the database, best first.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// The user and group the database's processes have. Supplementary groups are dropped, so none are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// True when the gateway is root and has to change to this user.
    pub(super) switch: bool,
}

impl User {
    /// The user for the database in `data`, which need not exist yet. An existing database decides by its
    /// owner: installing the `postgres` account later must not lock `nobody`'s database out.
    pub(super) fn for_data(data: &Path) -> Result<Self, Error> {
        let owner = match fs::symlink_metadata(data) {
            Ok(found) => Some((found.uid(), found.gid())),
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::io("look at", data, source)),
        };
        let own = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::choose(own, owner, &accounts).map_err(|reason| Error::User {
            data: data.to_path_buf(),
            reason,
        })
    }

    fn choose(own: (u32, u32), owner: Option<(u32, u32)>, accounts: &str) -> Result<Self, String> {
        let (uid, gid) = own;
        match (uid, owner) {
            (0, Some((0, _))) => {
                Err("it belongs to root, and PostgreSQL does not run as root".to_owned())
            }
            (0, Some((uid, gid))) => Ok(Self {
                uid,
                gid,
                switch: true,
            }),
            (0, None) => ACCOUNTS
                .iter()
                .find_map(|name| account(accounts, name))
                .map(|(uid, gid)| Self {
                    uid,
                    gid,
                    switch: true,
                })
                .ok_or_else(|| {
                    "PostgreSQL does not run as root, and there is neither a user `postgres` nor a user \
                     `nobody` to run it as"
                        .to_owned()
                }),
            (_, Some((owner, _))) if owner != uid => Err(format!(
                "it belongs to user {owner}, and this process runs as user {uid}"
            )),
            _ => Ok(Self {
                uid,
                gid,
                switch: false,
            }),
        }
    }

    /// The first directory on the way down to `directory` (itself included) that this user may not enter.
    /// Permission bits only: an access list that allows more is not seen.
    pub(super) fn stopped_at(self, directory: &Path) -> Option<PathBuf> {
        let mut way: Vec<&Path> = directory.ancestors().collect();
        way.reverse();
        way.into_iter()
            .find(|step| !self.may_enter(step))
            .map(Path::to_path_buf)
    }

    fn may_enter(self, directory: &Path) -> bool {
        let Ok(found) = fs::metadata(directory) else {
            return false;
        };
        let bit = if found.uid() == self.uid {
            0o100
        } else if found.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        found.is_dir() && found.mode() & bit != 0
    }
}

/// User and group number of `name` in the text of `/etc/passwd`, unless the account is root's.
fn account(accounts: &str, name: &str) -> Option<(u32, u32)> {
    let line = accounts
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2);
    let uid = numbers.next()?.parse().ok()?;
    let gid = numbers.next()?.parse().ok()?;
    (uid != 0).then_some((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\n\
        nobody:x:65534:65533::/:/bin/false\n\
        postgres:x:101:104::/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn root_gives_the_database_a_user_of_its_own() {
        let user = User::choose((0, 0), None, PASSWD).unwrap();
        assert_eq!((user.uid, user.gid, user.switch), (101, 104, true));
        let without = PASSWD.replace("postgres:", "other:");
        let user = User::choose((0, 0), None, &without).unwrap();
        assert_eq!((user.uid, user.gid, user.switch), (65534, 65533, true));
        assert!(User::choose((0, 0), None, "root:x:0:0::/:/bin/sh\n").is_err());
        assert!(User::choose((0, 0), None, "postgres:x:0:0::/:/bin/sh\n").is_err());
    }

    #[test]
    fn an_existing_database_keeps_its_owner() {
        let user = User::choose((0, 0), Some((65534, 65533)), PASSWD).unwrap();
        assert_eq!((user.uid, user.gid, user.switch), (65534, 65533, true));
        assert!(User::choose((0, 0), Some((0, 0)), PASSWD).is_err());
        assert!(User::choose((1000, 1000), Some((101, 104)), PASSWD).is_err());
    }

    #[test]
    fn anybody_else_shares_their_own_user() {
        let user = User::choose((1000, 1001), Some((1000, 5)), PASSWD).unwrap();
        assert_eq!((user.uid, user.gid, user.switch), (1000, 1001, false));
    }
}
