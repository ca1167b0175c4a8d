//! What processes have used so far, as Linux tells it in /proc.

use std::{fs, path::Path};

/// Hundredths of a second: `sysconf(_SC_CLK_TCK)` is 100 on every Linux that this runs on.
const TICK_SECONDS: f64 = 0.01;

/// The fields of /proc/PID/stat behind the name, the state being the first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The sum of the fields with these numbers (of proc(5), the state being 3) in seconds.
fn seconds(fields: &[String], numbers: &[usize]) -> f64 {
    let ticks = numbers
        .iter()
        .filter_map(|number| fields.get(number - 3)?.parse::<f64>().ok());
    ticks.sum::<f64>() * TICK_SECONDS
}

/// Processor seconds of this process, its ended children left out.
pub fn own_seconds() -> f64 {
    stat(std::process::id()).map_or(0.0, |fields| seconds(&fields, &[14, 15]))
}

/// Processor seconds of the server in this home: of the processes that live, and of those that it has seen end.
pub fn server_seconds(home: &Path) -> f64 {
    let pid = fs::read_to_string(home.join("postgres/data/postmaster.pid")).unwrap_or_default();
    let Some(server) = pid.lines().next().and_then(|pid| pid.trim().parse().ok()) else {
        return 0.0;
    };
    let mut sum = stat(server).map_or(0.0, |fields| seconds(&fields, &[14, 15, 16, 17]));
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let Some(fields) = stat(pid) else { continue };
        if fields.get(1).and_then(|parent| parent.parse().ok()) == Some(server) {
            sum += seconds(&fields, &[14, 15]);
        }
    }
    sum
}

/// The most memory that a process has had at once, in bytes.
pub fn peak_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
