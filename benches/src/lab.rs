//! Network namespaces on one bridge, whose links are shaped, with no route out of them.
//!
//! Needs root, `ip` and `tc`. What is made here goes with the [`Lab`]. Not here: what runs in it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::left::{self, LINKS, NAMESPACES};

/// The ports that every node of a lab may use.
const PORT: u16 = 47_000;
const PORT_BESIDE: u16 = 47_001;

/// Nodes on one bridge.
pub(crate) struct Lab {
    tag: String,
    nodes: usize,
}

impl Lab {
    /// This many namespaces with nothing but a link to the bridge.
    pub(crate) fn new(nodes: usize) -> Result<Self> {
        let lab = Self { tag: left::tag(), nodes };
        let bridge = lab.bridge();
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
        run("ip", &["link", "set", &bridge, "up"])?;
        for node in 0..nodes {
            let (name, outside) = (lab.name(node), lab.outside(node));
            run("ip", &["netns", "add", &name])?;
            run("ip", &["link", "add", &outside, "type", "veth", "peer", "name", "e0", "netns", &name])?;
            run("ip", &["link", "set", &outside, "master", &bridge, "up"])?;
            let address = format!("{}/24", lab.ip(node));
            run("ip", &["-n", &name, "addr", "add", &address, "dev", "e0"])?;
            run("ip", &["-n", &name, "link", "set", "e0", "up"])?;
            run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(lab)
    }

    /// Lets the link of a node carry this much each way.
    pub(crate) fn shape(&self, node: usize, mbit: u64) -> Result<()> {
        let rate = format!("{mbit}mbit");
        let shape = ["root", "tbf", "rate", &rate, "burst", "256kb", "latency", "50ms"];
        let outside = self.outside(node);
        run("tc", &[&["qdisc", "replace", "dev", &outside], &shape[..]].concat())?;
        run("tc", &[&["-n", &self.name(node), "qdisc", "replace", "dev", "e0"], &shape[..]].concat())
    }

    /// A command that will run in a node.
    pub(crate) fn command(&self, node: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(node), program]);
        command
    }

    /// Where a node listens.
    pub(crate) fn address(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.ip(node).into(), PORT)
    }

    /// Where a second part of a node listens.
    pub(crate) fn address_beside(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.ip(node).into(), PORT_BESIDE)
    }

    /// The file that stands for a node's namespace.
    pub(crate) fn namespace(&self, node: usize) -> PathBuf {
        Path::new(NAMESPACES).join(self.name(node))
    }

    /// The name of a node's namespace.
    pub(crate) fn name(&self, node: usize) -> String {
        format!("{}-{node}", self.tag)
    }

    /// The bytes that a node has sent, with the heads of their packets.
    pub(crate) fn sent_by(&self, node: usize) -> Result<u64> {
        let path = format!("{LINKS}/{}/statistics/rx_bytes", self.outside(node));
        let text = fs::read_to_string(&path).with_context(|| format!("`{path}` cannot be read"))?;
        Ok(text.trim().parse()?)
    }

    fn ip(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, 0, u8::try_from(node + 1).expect("a lab is small"))
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    fn outside(&self, node: usize) -> String {
        format!("{}v{node}", self.tag)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What was never made cannot be removed: the error says nothing new.
        for node in 0..self.nodes {
            let _ = run("ip", &["netns", "del", &self.name(node)]);
            let _ = run("ip", &["link", "del", &self.outside(node)]);
        }
        let _ = run("ip", &["link", "del", &self.bridge()]);
    }
}

/// Runs a command to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("`{program}` cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}`: {}", arguments.join(" "), said.trim());
    Ok(())
}
