//! A path that is far and loses packets: two TUN devices, and what one sends comes out of the other later,
//! no faster than the rate, or not at all.
//!
//! The kernel at hand has no netem. Not here: in which namespaces the two devices end up.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tun_rs::{DeviceBuilder, SyncDevice};

/// The packets that are on their way at once, at the most.
const ON_THE_WAY: usize = 1 << 14;
/// How far a sender may be ahead of the rate before its packets are dropped.
const QUEUE: Duration = Duration::from_millis(100);
const MTU: u16 = 1500;

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// The names of the two devices.
    #[arg(num_args = 2)]
    names: Vec<String>,
    /// How long a packet takes one way, in milliseconds.
    #[arg(long)]
    delay_ms: u64,
    /// How many of a thousand packets are lost.
    #[arg(long)]
    lost_per_mille: u64,
    /// What crosses in a second each way, in Mbit.
    #[arg(long)]
    mbit: u64,
}

/// Forwards until it is ended; prints a line once both devices are there.
pub(crate) fn forward(forward: &Forward) -> Result<()> {
    let device = |name: &String| {
        let built = DeviceBuilder::new().name(name).mtu(MTU).enable(false).build_sync();
        built.map(Arc::new).with_context(|| format!("no TUN device `{name}`"))
    };
    let devices = forward.names.iter().map(device).collect::<Result<Vec<_>>>()?;
    let [one, other] = &devices[..] else { anyhow::bail!("two names are needed") };
    println!("ready");
    thread::scope(|scope| {
        for (seed, (from, to)) in (1..).zip([(one, other), (other, one)]) {
            let (sender, receiver) = sync_channel(ON_THE_WAY);
            scope.spawn(move || take(from, forward, seed, &sender));
            scope.spawn(move || give(to, &receiver));
        }
    });
    Ok(())
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

/// Takes what a device sends, as long as there is the device.
fn take(device: &SyncDevice, forward: &Forward, mut dice: u64, sender: &SyncSender<Packet>) {
    let mut buffer = vec![0; usize::from(MTU) + 100];
    let mut free = Instant::now();
    loop {
        let length = match device.recv(&mut buffer) {
            Ok(length) => length,
            // A device that is down for a moment, while it is moved.
            Err(_) => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        // The usual xorshift: the same losses in every run.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let now = Instant::now();
        free = free.max(now);
        if dice % 1000 < forward.lost_per_mille || free - now > QUEUE {
            continue;
        }
        free += Duration::from_nanos(length as u64 * 8_000 / forward.mbit);
        let due = free + Duration::from_millis(forward.delay_ms);
        // A full queue loses the packet, as a router's does.
        let _ = sender.try_send(Packet { due, bytes: buffer[..length].to_vec() });
    }
}

/// Gives each packet to the other device when it is due.
fn give(device: &SyncDevice, receiver: &Receiver<Packet>) {
    for packet in receiver {
        thread::sleep(packet.due.saturating_duration_since(Instant::now()));
        // One that the device does not take is lost, as on any path.
        let _ = device.send(&packet.bytes);
    }
}
