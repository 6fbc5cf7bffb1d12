//! What a program and those that it started have done: their time on processors, and what they read from disks and wrote.
//!
//! Not here: what that tells of it. Blocks where it reads `/proc`.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// The processor time and the bytes of a process and of all that came of it.
pub(crate) fn of(root: u32) -> (Duration, u64) {
    let processes = processes();
    let family: Vec<&u32> = processes.keys().filter(|id| is_of(**id, root, &processes)).collect();
    let ticks: u64 = family.iter().map(|id| processes[*id].ticks).sum();
    let bytes = family.iter().map(|id| disk_bytes(**id)).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok());
    // What each Linux has had for decades.
    let per_second = per_second.filter(|ticks| *ticks > 0).unwrap_or(100);
    (Duration::from_secs(ticks) / per_second, bytes)
}

/// What the system tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// Its processor time, and that of its children that ended.
    ticks: u64,
}

fn processes() -> BTreeMap<u32, Process> {
    let entries = read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let process = |id: u32| Some((id, parse(&read_to_string(format!("/proc/{id}/stat")).ok()?)?));
    ids.filter_map(process).collect()
}

/// The name in a line of `stat` can hold anything, so what counts stands behind its last parenthesis.
fn parse(stat: &str) -> Option<Process> {
    let mut numbers = stat.rsplit_once(") ")?.1.split(' ');
    let parent = numbers.nth(1)?.parse().ok()?;
    let times = numbers.skip(9).take(4).map(|ticks| ticks.parse::<u64>());
    Some(Process { parent, ticks: times.sum::<Result<u64, _>>().ok()? })
}

fn is_of(id: u32, root: u32, processes: &BTreeMap<u32, Process>) -> bool {
    // Those of one look may be of different moments, so nothing promises that parents lead to an end.
    let mut above = Some(id);
    for _ in 0..processes.len() {
        match above {
            Some(id) if id == root => return true,
            Some(id) => above = processes.get(&id).map(|process| process.parent),
            None => return false,
        }
    }
    false
}

/// None where the system does not tell us.
fn disk_bytes(id: u32) -> u64 {
    let told = read_to_string(format!("/proc/{id}/io")).unwrap_or_default();
    let numbers = told.lines().filter_map(|line| line.split_once(": "));
    let of_disks = numbers.filter(|(name, _)| matches!(*name, "read_bytes" | "write_bytes"));
    of_disks.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn line_of_a_process_is_read_whatever_its_name_is() {
        let line = "7 (a) b (c) R 3 7 7 0 -1 4194304 100 0 0 0 11 20 300 4000 20 0 1 0 100 1 1";
        assert_eq!(parse(line), Some(Process { parent: 3, ticks: 4331 }));
        assert_eq!(parse("7 (a"), None);
    }

    #[test]
    fn work_is_that_of_a_program_and_of_what_it_started() {
        let start = |script: &str| {
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("it starts")
        };
        let mut busy = start("(while :; do :; done) & echo $!; wait");
        let mut idle = start("exec sleep 1000");
        while of(busy.id()).0 < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        assert!(of(idle.id()).0 < Duration::from_millis(50), "that of others is not its own");
        let mut child = String::new();
        let told = busy.stdout.take().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(told), &mut child)
            .expect("it tells its child");
        let child = nix::unistd::Pid::from_raw(child.trim().parse().expect("a number"));
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("killed");
        for program in [&mut busy, &mut idle] {
            program.kill().expect("killed");
            program.wait().expect("it ended");
        }
    }
}
