//! Finds the machine's own `initdb` and `postgres`, because the gateway brings no database with it.
//!
//! Both have to come from one directory, and from the real one: `postgres` looks for its share directory
//! relative to where it lies, which a link in `/usr/local/bin` would hide.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::Error;

/// The oldest major version whose `initdb` knows the options used here.
pub(super) const OLDEST: u32 = 14;

/// Where programs are looked for. Tests point it at directories of their own.
#[derive(Debug, Clone)]
pub(super) struct Search {
    /// The value of `PATH`.
    pub(super) path: Option<OsString>,
    /// The directory with one subdirectory for each major version, as Debian lays PostgreSQL out.
    pub(super) versions: PathBuf,
    /// A directory of programs that is tried last.
    pub(super) last: PathBuf,
}

impl Search {
    /// The places this machine has.
    pub(super) fn of_this_machine() -> Self {
        Self {
            path: std::env::var_os("PATH"),
            versions: PathBuf::from("/usr/lib/postgresql"),
            last: PathBuf::from("/usr/local/pgsql/bin"),
        }
    }

    /// The directories that may hold the programs, best first, links resolved.
    fn directories(&self) -> Vec<PathBuf> {
        let on_path = self.path.iter().flat_map(std::env::split_paths);
        let mut by_version: Vec<(u32, PathBuf)> = fs::read_dir(&self.versions)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.parse().ok()?;
                Some((version, entry.path().join("bin")))
            })
            .collect();
        by_version.sort_by_key(|(version, _)| std::cmp::Reverse(*version));

        let mut found = Vec::new();
        for directory in on_path
            .filter(|directory| directory.is_absolute())
            .chain(by_version.into_iter().map(|(_, directory)| directory))
            .chain([self.last.clone()])
        {
            let Ok(initdb) = directory.join("initdb").canonicalize() else {
                continue;
            };
            let Some(real) = initdb.parent().map(Path::to_path_buf) else {
                continue;
            };
            if !found.contains(&real) {
                found.push(real);
            }
        }
        found
    }
}

/// A pair of programs that belong together.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
    /// The major version, such as 15.
    pub(super) major: u32,
}

/// Finds the programs: the first pair on `PATH`, else the newest elsewhere. A database that exists already
/// can only be opened by its own major version, which `wanted` then names.
pub(super) fn find(search: &Search, wanted: Option<u32>) -> Result<Programs, Error> {
    let pairs: Vec<Programs> = search
        .directories()
        .iter()
        .filter_map(|directory| pair(directory))
        .collect();
    let fits = |programs: &&Programs| match wanted {
        Some(major) => programs.major == major,
        None => programs.major >= OLDEST,
    };
    pairs.iter().find(fits).cloned().ok_or_else(|| {
        let found = pairs
            .iter()
            .map(|programs| {
                let place = programs.postgres.parent().unwrap_or(&programs.postgres);
                format!("{} in {}", programs.major, place.display())
            })
            .collect::<Vec<_>>();
        Error::Programs {
            wanted: match wanted {
                Some(major) => format!("version {major}, which made this database,"),
                None => format!("version {OLDEST} or later"),
            },
            package: wanted.map_or_else(
                || "postgresql".to_owned(),
                |major| format!("postgresql-{major}"),
            ),
            versions: search.versions.clone(),
            last: search.last.clone(),
            found: if found.is_empty() {
                "nothing".to_owned()
            } else {
                format!("only {}", found.join(", "))
            },
        }
    })
}

fn pair(directory: &Path) -> Option<Programs> {
    let initdb = directory.join("initdb");
    let postgres = directory.join("postgres");
    if !(is_program(&initdb) && is_program(&postgres)) {
        return None;
    }
    let answer = Command::new(&postgres)
        .arg("--version")
        .env_clear()
        .output()
        .ok()?;
    let major = major_version(&String::from_utf8_lossy(&answer.stdout))?;
    Some(Programs {
        initdb,
        postgres,
        major,
    })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// 15 for `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`, 18 for `… 18beta1`.
fn major_version(answer: &str) -> Option<u32> {
    let (_, version) = answer.split_once("(PostgreSQL) ")?;
    let digits = version.find(|letter: char| !letter.is_ascii_digit());
    version.get(..digits.unwrap_or(version.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::tests::Scratch;

    fn nowhere(scratch: &Scratch) -> Search {
        Search {
            path: Some(scratch.path.clone().into_os_string()),
            versions: scratch.path.join("versions"),
            last: scratch.path.join("last"),
        }
    }

    fn fake(directory: &Path, version: &str) {
        fs::create_dir_all(directory).unwrap();
        for name in ["initdb", "postgres"] {
            let program = directory.join(name);
            let text = format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n");
            fs::write(&program, text).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn reads_versions() {
        assert_eq!(
            major_version("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_version("postgres (Other) 18"), None);
    }

    #[test]
    fn finds_the_real_programs_behind_links() {
        let found = find(&Search::of_this_machine(), None).unwrap();
        assert!(found.major >= OLDEST);
        let directory = found.initdb.parent().unwrap();
        assert_eq!(directory, directory.canonicalize().unwrap());
        assert_eq!(found.postgres.parent().unwrap(), directory);
    }

    #[test]
    fn says_what_to_install_when_nothing_is_there() {
        let scratch = Scratch::new("programs-none");
        let said = find(&nowhere(&scratch), None).unwrap_err().to_string();
        for part in [
            "apt-get install postgresql",
            "PATH",
            "versions",
            "version 14 or later",
        ] {
            assert!(said.contains(part), "{part:?} is missing in: {said}");
        }
    }

    #[test]
    fn half_a_pair_is_no_pair() {
        let scratch = Scratch::new("programs-half");
        let search = nowhere(&scratch);
        fake(&search.last, "16.1");
        fs::remove_file(search.last.join("postgres")).unwrap();
        assert!(find(&search, None).is_err());
    }

    #[test]
    fn the_newest_wins_and_an_existing_database_gets_its_own_version() {
        let scratch = Scratch::new("programs-newest");
        let search = nowhere(&scratch);
        for version in ["9", "13", "15", "16"] {
            fake(
                &search.versions.join(version).join("bin"),
                &format!("{version}.2"),
            );
        }
        assert_eq!(find(&search, None).unwrap().major, 16);
        assert_eq!(find(&search, Some(15)).unwrap().major, 15);
        let said = find(&search, Some(17)).unwrap_err().to_string();
        assert!(said.contains("apt-get install postgresql-17"), "{said}");
        assert!(said.contains("only 16 in "), "{said}");
        fake(&scratch.path, "14.0");
        assert_eq!(find(&search, None).unwrap().major, 14, "PATH comes first");
    }

    #[test]
    fn a_version_that_is_too_old_is_not_taken() {
        let scratch = Scratch::new("programs-old");
        let search = nowhere(&scratch);
        fake(&search.last, "13.4");
        assert!(find(&search, None).is_err());
    }
}
