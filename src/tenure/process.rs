//! Which process this is, so that a later gateway on the same machine can know it dead and need not wait until it certainly
//! sends nothing more.

use std::fs;

use rustix::{
    io::Errno,
    process::{Pid, getpid, test_kill_process},
};

/// This process: the boot of the machine, the namespace that its number is of, its number, and when it began (in clock ticks
/// since the boot; a number is used again). `None` where `/proc` does not tell.
pub fn this() -> Option<String> {
    let pid = getpid();
    let number = pid.as_raw_nonzero();
    let began = state_and_start(pid)?.1;
    Some(format!("{} {number} {began}", place()?))
}

/// Whether a process that called itself so is certainly dead. False for one of another machine or container, of which nothing
/// can be known.
pub fn is_dead(process: &str) -> bool {
    let Some(here) = place() else { return false };
    let Some(rest) = process.strip_prefix(&here) else {
        return false;
    };
    let mut words = rest.split_ascii_whitespace();
    let (Some(number), Some(began), None) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let Some(pid) = number.parse().ok().and_then(Pid::from_raw) else {
        return false;
    };
    match test_kill_process(pid) {
        Err(Errno::SRCH) => true,
        // It may be there and not be ours to look at.
        _ => state_and_start(pid)
            .is_some_and(|(state, start)| start != began || matches!(state, 'Z' | 'X')),
    }
}

/// The boot and the namespace of process numbers.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.to_str()?))
}

/// Fields 3 and 22 of `/proc/PID/stat` (proc_pid_stat(5)). The second field is the program's name in brackets, which may hold
/// anything.
fn state_and_start(pid: Pid) -> Option<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_name, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn named(pid: Pid) -> String {
        let began = state_and_start(pid).unwrap().1;
        format!("{} {} {began}", place().unwrap(), pid.as_raw_nonzero())
    }

    #[test]
    fn a_process_is_dead_once_it_has_ended_and_not_before() {
        assert!(!is_dead(&this().unwrap()), "this very process");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let name = named(Pid::from_child(&child));
        assert!(!is_dead(&name), "{name}");
        child.kill().unwrap();
        // Its parent has not asked for it yet.
        while !is_dead(&name) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(is_dead(&name), "{name}");
    }

    #[test]
    fn a_number_that_was_given_again_is_another_process() {
        let this = this().unwrap();
        let (before, began) = this.rsplit_once(' ').unwrap();
        let other: u64 = began.parse::<u64>().unwrap() - 1;
        assert!(is_dead(&format!("{before} {other}")));
    }

    #[test]
    fn of_another_machine_nothing_is_known() {
        let this = this().unwrap();
        for unknown in ["", "x", &this[1..], &format!("{this} 1"), &place().unwrap()] {
            assert!(!is_dead(unknown), "{unknown:?}");
        }
    }
}
