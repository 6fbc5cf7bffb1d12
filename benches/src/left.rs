//! What benchmarks left that were killed: namespaces with what still runs in them, links, files in memory.
//!
//! They are told by their names, which hold the id of the process that made them. Not here: what ends as
//! it should; that removes its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::run;

/// Where the system lists namespaces and links.
pub(crate) const NAMESPACES: &str = "/run/netns";
pub(crate) const LINKS: &str = "/sys/class/net";
/// Where files are kept in memory.
pub(crate) const MEMORY: &str = "/dev/shm";

/// What a benchmark puts before the names of its namespaces and links: those of links are short.
pub(crate) fn tag() -> String {
    format!("{TAG}{}", std::process::id())
}

/// What it puts before the names of its folders.
pub(crate) fn folder_tag() -> String {
    format!("{FOLDER_TAG}{}-", std::process::id())
}

const TAG: &str = "fb";
const FOLDER_TAG: &str = "comfy-farm-bench-";

/// Removes all that is left of benchmarks whose process is gone.
pub(crate) fn remove() -> Result<()> {
    for name in left_in(NAMESPACES, owner)? {
        let pids = Command::new("ip").args(["netns", "pids", &name]).output()?;
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            // It may end by itself meanwhile.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        run("ip", &["netns", "del", &name])?;
    }
    for name in left_in(LINKS, owner)? {
        // The other end may have gone with its namespace, and this one with it.
        let _ = run("ip", &["link", "del", &name]);
    }
    for name in left_in(MEMORY, owner_of_folder)? {
        fs::remove_dir_all(Path::new(MEMORY).join(name))?;
    }
    Ok(())
}

/// The names in a folder that are of a process which is gone.
fn left_in(folder: &str, owner: impl Fn(&str) -> Option<u32>) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    Ok(names.into_iter().filter(|name| owner(name).is_some_and(|pid| !is_running(pid))).collect())
}

/// The process that gave a namespace or a link this name, if a benchmark did.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(TAG)?;
    let (pid, rest) = rest.split_at(rest.find(|letter: char| !letter.is_ascii_digit())?);
    let is_ours = rest == "b" || rest.strip_prefix(['v', '-'])?.parse::<usize>().is_ok();
    is_ours.then(|| pid.parse().ok())?
}

fn owner_of_folder(name: &str) -> Option<u32> {
    name.strip_prefix(FOLDER_TAG)?.split_once('-')?.0.parse().ok()
}

/// Whether a benchmark has this process id; the system gives those of ended processes to others.
fn is_running(pid: u32) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    name(&pid.to_string()).is_some_and(|running| Some(running) == name("self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_process_and_others_tell_none() {
        for name in ["fb123b", "fb123v7", "fb123-7"] {
            assert_eq!(owner(name), Some(123), "{name}");
        }
        for name in ["fb123", "fbb", "fb-7", "fb123x7", "fb123vx", "farm-a-123", "eth0"] {
            assert_eq!(owner(name), None, "{name}");
        }
        assert_eq!(owner_of_folder("comfy-farm-bench-123-AbC"), Some(123));
        assert_eq!(owner_of_folder("comfy-farm-bench-AbC"), None);
    }

    #[test]
    fn process_that_runs_is_told_from_one_that_is_gone_or_another() {
        assert!(is_running(std::process::id()));
        assert!(!is_running(1) && !is_running(u32::MAX));
    }
}
