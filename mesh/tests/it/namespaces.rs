//! Machines, as far as the network goes: namespaces, two of them joined by a virtual link or some by nothing yet.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Builder;

/// The addresses of the two ends.
pub(crate) const ADDRESSES: [&str; 2] = ["10.78.1.1", "10.78.1.2"];

/// Removed with the test.
pub(crate) struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    /// Two that are joined; `None`, with the reason printed, where this machine cannot have them.
    pub(crate) fn new() -> Option<Self> {
        Self::made(2, Self::join)
    }

    /// So many that nothing joins.
    pub(crate) fn apart(count: usize) -> Option<Self> {
        Self::made(count, |_| Ok(()))
    }

    fn made(count: usize, join: impl FnOnce(&Self) -> Result<(), String>) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (pid, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let names = (0..count).map(|index| format!("mesh-{pid}-{number}-{index}"));
        let namespaces = Self { names: names.collect() };
        let added = namespaces.names.iter().try_for_each(|name| ip(&["netns", "add", name]));
        let made = added.and_then(|()| join(&namespaces));
        if let Err(reason) = &made {
            eprintln!("skipped: no network namespaces: {reason}");
        }
        made.ok().map(|()| namespaces)
    }

    pub(crate) fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    fn join(&self) -> Result<(), String> {
        let (a, b) = (self.name(0), self.name(1));
        let [link_a, link_b] = ["a", "b"].map(|end| format!("{end}{}", a.trim_start_matches("mesh-")));
        ip(&["link", "add", &link_a, "netns", a, "type", "veth", "peer", "name", &link_b, "netns", b])?;
        for (name, link, address) in [(a, &link_a, ADDRESSES[0]), (b, &link_b, ADDRESSES[1])] {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "brd", "+", "dev", link])?;
            ip(&["-n", name, "link", "set", link, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "route", "add", "224.0.0.0/4", "dev", link])?;
        }
        Ok(())
    }

    /// Runs this on a thread and a runtime inside one of them.
    pub(crate) fn run<R: Future<Output: Send + 'static>>(
        &self,
        index: usize,
        main: impl FnOnce() -> R + Send + 'static,
    ) -> std::thread::JoinHandle<R::Output> {
        let path = format!("/run/netns/{}", self.names[index]);
        std::thread::spawn(move || {
            let namespace = File::open(path).expect("it was made");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            // One thread: every task and socket of it is inside as well.
            Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(main())
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // What cannot be removed now goes with the machine.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

pub(crate) fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
