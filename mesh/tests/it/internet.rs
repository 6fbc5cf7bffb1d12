//! A small internet: a public machine and two homes, each a namespace behind a translator, joined by TUN
//! devices that the test itself forwards between.
//!
//! Not here: what a translator lets through.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tun_rs::{DeviceBuilder, SyncDevice};

use super::namespaces::{Namespaces, ip};
use super::translator::{Ends, Mapping, Translator};

/// The public machine's namespace, and its address.
pub(crate) const PUBLIC: usize = 0;
pub(crate) const PUBLIC_IP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The namespaces of the homes.
pub(crate) const HOMES: [usize; 2] = [1, 2];
const DEVICE: &str = "wan0";
const MTU: u16 = 1500;

/// Forwards for as long as the process lives.
pub(crate) struct Internet {
    namespaces: Namespaces,
    crossed: Arc<Crossed>,
}

/// What crossed so far.
#[derive(Default)]
struct Crossed {
    /// Bytes from and to the public machine.
    public: AtomicU64,
    /// Packets and bytes that one home sent to the other, let in or not.
    direct: [AtomicU64; 2],
}

struct Lines {
    devices: Vec<SyncDevice>,
    translators: [Mutex<Translator>; 2],
    crossed: Arc<Crossed>,
}

impl Internet {
    /// One with these translators; `None`, with the reason printed, where this machine cannot have it.
    pub(crate) fn new(mappings: [Mapping; 2]) -> Option<Self> {
        let namespaces = Namespaces::apart(3)?;
        let crossed = Arc::<Crossed>::default();
        let devices: Result<Vec<_>, String> = (0..3).map(|index| device(&namespaces, index)).collect();
        let devices = devices.inspect_err(|reason| eprintln!("skipped: no TUN device: {reason}")).ok()?;
        let translator = |home: usize| Mutex::new(Translator::new(outside(home), mappings[home]));
        let translators = [translator(0), translator(1)];
        let lines = Arc::new(Lines { devices, translators, crossed: Arc::clone(&crossed) });
        for index in 0..3 {
            let lines = Arc::clone(&lines);
            thread::spawn(move || lines.forward_from(index));
        }
        Some(Self { namespaces, crossed })
    }

    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// How many bytes crossed from and to the public machine.
    pub(crate) fn public_bytes(&self) -> u64 {
        self.crossed.public.load(Ordering::Relaxed)
    }

    /// How many packets and bytes the homes sent to each other.
    pub(crate) fn direct(&self) -> [u64; 2] {
        [0, 1].map(|index| self.crossed.direct[index].load(Ordering::Relaxed))
    }
}

fn outside(home: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 1 + home as u8)
}

/// The only device of a namespace, through which everything goes.
fn device(namespaces: &Namespaces, index: usize) -> Result<SyncDevice, String> {
    let built = namespaces
        .run(index, || async { DeviceBuilder::new().name(DEVICE).mtu(MTU).enable(false).build_sync() });
    let device =
        built.join().map_err(|_| "the namespace cannot be entered")?.map_err(|error| error.to_string())?;
    let address = match index {
        PUBLIC => PUBLIC_IP,
        // The same at both homes, as it often is.
        _ => Ipv4Addr::new(192, 168, 1, 2),
    };
    let name = namespaces.name(index);
    ip(&["-n", name, "address", "add", &format!("{address}/32"), "dev", DEVICE])?;
    ip(&["-n", name, "link", "set", DEVICE, "up"])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    ip(&["-n", name, "route", "add", "default", "dev", DEVICE])?;
    Ok(device)
}

impl Lines {
    fn forward_from(&self, index: usize) {
        let mut buffer = vec![0; usize::from(MTU) + 100];
        // It ends with the process, or with the device.
        while let Ok(length) = self.devices[index].recv(&mut buffer) {
            let packet = &mut buffer[..length];
            let goes_out = match index {
                PUBLIC => true,
                home => self.translator(home - 1).let_out(packet),
            };
            if let (true, Some(ends)) = (goes_out, Ends::of(packet)) {
                self.deliver(index, *ends.to.ip(), packet);
            }
        }
    }

    fn deliver(&self, from: usize, to: Ipv4Addr, packet: &mut [u8]) {
        let bytes = packet.len() as u64;
        if from == PUBLIC || to == PUBLIC_IP {
            self.crossed.public.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.crossed.direct[0].fetch_add(1, Ordering::Relaxed);
            self.crossed.direct[1].fetch_add(bytes, Ordering::Relaxed);
        }
        let index = match HOMES.into_iter().find(|home| outside(home - 1) == to) {
            Some(home) if self.translator(home - 1).let_in(packet) => home,
            None if to == PUBLIC_IP => PUBLIC,
            _ => return,
        };
        // What the device does not take is lost, as on any path.
        let _ = self.devices[index].send(packet);
    }

    fn translator(&self, home: usize) -> std::sync::MutexGuard<'_, Translator> {
        self.translators[home].lock().expect("nothing panics while it holds it")
    }
}
