//! Two machines, as far as the network goes: namespaces of the test's own, joined by a pair of virtual links.
//!
//! Each has its own loopback, and reaches the other and nobody else. Not here: what runs in them.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use tokio::process::Command;

use crate::process::Process;

/// The namespaces; removed with the test.
pub struct Namespaces {
    id: String,
    names: [String; 2],
    /// The address of each, which the other reaches.
    pub addresses: [String; 2],
}

impl Namespaces {
    /// Two of them with addresses of this subnet of 10.77.0.0/16. Needs root.
    pub async fn new(subnet: u8) -> anyhow::Result<Self> {
        let id = format!("{}-{subnet}", std::process::id());
        let names = [format!("farm-a-{id}"), format!("farm-b-{id}")];
        let addresses = [1, 2].map(|host| format!("10.77.{subnet}.{host}"));
        let namespaces = Self { id, names, addresses };
        let [a, b] = &namespaces.names;
        let [link_a, link_b] = namespaces.links();
        for name in [a, b] {
            ip(&["netns", "add", name]).await?;
        }
        ip(&["link", "add", &link_a, "netns", a, "type", "veth", "peer", "name", &link_b, "netns", b])
            .await?;
        for (name, link, address) in
            [(a, &link_a, &namespaces.addresses[0]), (b, &link_b, &namespaces.addresses[1])]
        {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", link]).await?;
            ip(&["-n", name, "link", "set", link, "up"]).await?;
            ip(&["-n", name, "link", "set", "lo", "up"]).await?;
        }
        Ok(namespaces)
    }

    /// Lets the link carry this much each way.
    pub async fn shape(&self, mbit: u64) -> anyhow::Result<()> {
        let rate = format!("{mbit}mbit");
        for (name, link) in self.names.iter().zip(self.links()) {
            let device = ["-n", name, "qdisc", "replace", "dev", &link, "root"];
            run("tc", &[&device[..], &["tbf", "rate", &rate, "burst", "256kb", "latency", "50ms"]].concat())
                .await?;
        }
        Ok(())
    }

    fn links(&self) -> [String; 2] {
        ["a", "b"].map(|end| format!("f{end}{}", self.id))
    }

    /// The binary inside one of them.
    pub fn comfy_farm(&self, index: usize, folder: &Path, arguments: &[&str]) -> Command {
        Process::comfy_farm_in(&self.names[index], folder, arguments)
    }

    /// Listens on the loopback of one of them, for a server of the test itself.
    pub fn listen(&self, index: usize) -> anyhow::Result<TcpListener> {
        let path = Path::new("/run/netns").join(&self.names[index]);
        let listening = std::thread::spawn(move || -> anyhow::Result<TcpListener> {
            // For this thread alone, which ends with it; the socket stays there.
            setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
        });
        listening.join().ok().context("the thread ends")?
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // What cannot be removed now goes with the machine.
            let _ = std::process::Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

async fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run("ip", arguments).await
}

async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().await?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
