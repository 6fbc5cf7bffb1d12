//! What this machine allows at the best: bytes copied, hashed, and sent through TLS between two tasks.
//!
//! Not here: what is made of it; `rows` puts it beside the transfers.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use mesh::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::carry::PlaneName;
use crate::processes::cpu_of_self;
use crate::table::{Beside, GIB, Line};

const PART: usize = 1 << 20;
/// Several times what a large cache holds.
const UNCACHED: usize = 256 << 20;

/// Every limit, each over that many MiB.
pub(crate) async fn measure(mib: u64) -> Result<Vec<Line>> {
    let from = vec![7; PART];
    let copied = copied(mib)?;
    let hashed = timed("BLAKE3, one core", mib, || {
        black_box(blake3::hash(black_box(&from)));
    })?;
    let tls = pumped(PlaneName::Tls, mib).await?;
    let quic = pumped(PlaneName::Quic, mib).await?;
    Ok(vec![copied, hashed, tls, quic])
}

/// From memory to memory: more at a time than any cache holds.
fn copied(mib: u64) -> Result<Line> {
    let from = vec![7; UNCACHED];
    let mut to = vec![0; UNCACHED];
    let mut offsets = (0..UNCACHED).step_by(PART).cycle();
    timed("memory copy", mib, || {
        let offset = offsets.next().expect("it has no end");
        let part = offset..offset + PART;
        black_box(&mut to)[part.clone()].copy_from_slice(&black_box(&from)[part]);
    })
}

fn timed(what: &str, mib: u64, mut work: impl FnMut()) -> Result<Line> {
    let (began, cpu) = (Instant::now(), cpu_of_self()?);
    (0..mib).for_each(|_| work());
    line(what, mib, began, cpu)
}

fn line(what: &str, mib: u64, began: Instant, cpu: f64) -> Result<Line> {
    let gib = (mib << 20) as f64 / GIB;
    let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_of_self()? - cpu);
    let line = Line::new("limits", what, took, Beside::Nothing).with_cpu(cpu / gib);
    Ok(line.with_note(format!("{mib} MiB, {:.2} GiB/s", gib / took)))
}

/// Zeros through one channel of a plane, both ends in this process.
async fn pumped(plane: PlaneName, mib: u64) -> Result<Line> {
    let local: SocketAddr = ([127, 0, 0, 1], 0).into();
    let (one, other) = (Identity::generate()?, Identity::generate()?);
    let near = plane.bind(&one, local).await?;
    let far = plane.bind(&other, local).await?;
    let address = *far.addresses().last().context("it listens nowhere")?;
    let (link, accepted) = tokio::join!(near.dial(other.peer(), address), far.accept());
    let (link, accepted) = (link?, accepted.context("the plane is closed")?);
    link.admit();
    accepted.admit();
    let (began, cpu) = (Instant::now(), cpu_of_self()?);
    let mut channel = link.open().await?;
    let sending = tokio::spawn(async move {
        let part = vec![0; PART];
        for _ in 0..mib {
            channel.writer.write_all(&part).await?;
        }
        channel.writer.shutdown().await?;
        // Held until the other side has everything.
        channel.reader.read_u8().await
    });
    let mut channel = accepted.accept().await.context("the link broke")?;
    let mut part = vec![0; PART];
    for _ in 0..mib {
        channel.reader.read_exact(&mut part).await?;
    }
    let line = line(&format!("{} through one channel", near.name()), mib, began, cpu);
    channel.writer.write_u8(0).await?;
    channel.writer.flush().await?;
    sending.await??;
    line
}
