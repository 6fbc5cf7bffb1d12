//! AMD's graphics cards, as files of the Linux kernel tell of them: its compute driver, KFD, lists them below
//! `/sys/class/kfd`, and its graphics driver, amdgpu, tells their memory below `/sys/class/drm`.
//!
//! A process computes on a card through `/dev/kfd`, which all cards share, and through the card's own render device.
//! Not here: which cards are used.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What the id of a card begins with; its address on the bus follows.
const ID: &str = "AMD-";
/// How many bytes are read of a file: the kernel's are of one page.
const MAX_FILE: u64 = 64 << 10;
/// How many entries of the kernel's list are looked at. It has one for each card and each processor.
const MAX_NODES: usize = 512;
/// The numbers that the kernel gives to render devices.
const RENDER_MINORS: std::ops::RangeInclusive<u64> = 128..=255;

/// Where the kernel tells of cards.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    root: PathBuf,
}

/// A card that this process can compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AmdCard {
    /// For people.
    pub(crate) name: String,
    /// Its own memory in bytes.
    pub(crate) memory: u64,
    /// Where it is on the bus, such as `0000:03:00.0`. Not every card has a number of its own, but each has this.
    address: String,
    /// The number of its own; 0 where it has none.
    unique: u64,
    /// Its render device, such as `renderD128`.
    render: String,
}

/// A card that it cannot compute on.
#[derive(Debug)]
pub(crate) struct Unreachable {
    /// What is known of it, for people.
    pub(crate) card: String,
    /// Why.
    pub(crate) reason: NoAccess,
}

/// Why a card cannot be computed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAccess {
    /// A file in which the kernel tells of it cannot be read.
    #[error("`{}` cannot be read", file.display())]
    Unread {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file says something else than it should.
    #[error("`{}` does not say {what}", file.display())]
    Unclear {
        /// Which.
        file: PathBuf,
        /// What is missing there.
        what: &'static str,
    },
    /// A device is not there.
    #[error("there is no `{}`; in a container it has to be passed in (`--device`)", .0.display())]
    NoDevice(PathBuf),
    /// A device is not for this user.
    #[error(
        "`{}` cannot be opened for reading and writing: the node's user must be in the group that owns it, most often \
         `render` (`usermod -aG render USER`)",
        device.display()
    )]
    Closed {
        /// Which.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Whether this is the id of such a card.
pub(crate) fn is_id(id: &str) -> bool {
    id.starts_with(ID)
}

impl AmdCard {
    /// What the card is known by in the farm.
    pub(crate) fn id(&self) -> String {
        format!("{ID}{}", self.address)
    }
}

impl fmt::Display for AmdCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

impl Kernel {
    /// That of this machine.
    pub(crate) fn system() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// Its cards, in its own order.
    pub(crate) fn cards(&self) -> Vec<Result<AmdCard, Unreachable>> {
        let Ok(entries) = std::fs::read_dir(self.topology()) else { return Vec::new() };
        let number = |name: std::ffi::OsString| name.to_str()?.parse::<u32>().ok();
        let mut nodes: Vec<u32> =
            entries.flatten().take(MAX_NODES).filter_map(|entry| number(entry.file_name())).collect();
        nodes.sort_unstable();
        nodes.into_iter().filter_map(|node| self.card(node).transpose()).collect()
    }

    /// The devices through which a process computes on a card, and what it is told so that it finds that card alone;
    /// `None` where the card is not there any more. Within walls it sees no other one.
    pub(crate) fn access(&self, id: &str, walled: bool) -> Option<(Vec<PathBuf>, String)> {
        // AMD's runtime leaves out what it cannot open, and counts the others.
        let reachable: Vec<AmdCard> = self.cards().into_iter().flatten().collect();
        let place = reachable.iter().position(|card| card.id() == id)?;
        let card = &reachable[place];
        let visible = match (card.unique, walled) {
            (0, true) => "0".to_owned(),
            (0, false) => place.to_string(),
            (unique, _) => format!("GPU-{unique:016x}"),
        };
        Some((vec![self.kfd(), self.device(&card.render)], visible))
    }

    /// How many bytes of a card's memory are in use. Asked often, so no device is opened for it.
    pub(crate) fn used(&self, id: &str) -> Option<u64> {
        let card = self.root.join("sys/bus/pci/devices").join(id.strip_prefix(ID)?);
        number(&card.join("mem_info_vram_used")).ok()
    }

    /// The card of an entry of the kernel's list; `None` where that is a processor.
    fn card(&self, node: u32) -> Result<Option<AmdCard>, Unreachable> {
        let folder = self.topology().join(node.to_string());
        let unknown =
            |reason| Unreachable { card: format!("AMD, entry {node} of the kernel's list"), reason };
        let file = folder.join("properties");
        let properties = Properties::parse(&text(&file).map_err(unknown)?);
        match properties.get("simd_count") {
            Some(0) => return Ok(None),
            Some(_) => {}
            None => return Err(unknown(NoAccess::Unclear { file, what: "how much it computes with" })),
        }
        let address = properties.address();
        let target = properties.target();
        let unreachable = |reason| Unreachable { card: format!("{target} at {address}"), reason };
        // Where a container has it closed, reading this is refused, and AMD's runtime leaves the card out.
        number(&folder.join("gpu_id")).map_err(unreachable)?;
        let minor = properties.get("drm_render_minor").filter(|minor| RENDER_MINORS.contains(minor));
        let no_minor = || unreachable(NoAccess::Unclear { file, what: "which render device it has" });
        let render = format!("renderD{}", minor.ok_or_else(no_minor)?);
        for device in [self.kfd(), self.device(&render)] {
            let opened = OpenOptions::new().read(true).write(true).open(&device);
            opened.map_err(|error| unreachable(closed(device, error)))?;
        }
        let memory = number(&self.told(&render, "mem_info_vram_total")).map_err(unreachable)?;
        // Only cards for servers and workstations have a name there.
        let name = text(&self.told(&render, "product_name")).unwrap_or_default();
        let name = match name.trim() {
            "" => target.clone(),
            name => name.chars().filter(|letter| !letter.is_control()).take(80).collect(),
        };
        let unique = properties.get("unique_id").unwrap_or_default();
        Ok(Some(AmdCard { name, memory, address, unique, render }))
    }

    fn topology(&self) -> PathBuf {
        self.root.join("sys/class/kfd/kfd/topology/nodes")
    }

    fn kfd(&self) -> PathBuf {
        self.root.join("dev/kfd")
    }

    fn device(&self, render: &str) -> PathBuf {
        self.root.join("dev/dri").join(render)
    }

    /// A file in which amdgpu tells something of the card with this render device.
    fn told(&self, render: &str, what: &str) -> PathBuf {
        self.root.join("sys/class/drm").join(render).join("device").join(what)
    }
}

/// What KFD tells of one entry: a name and a number on each line.
struct Properties(Vec<(String, u64)>);

impl Properties {
    /// Lines that are none of these are passed over.
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, value) = line.trim().split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn get(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// Where the card is on the bus: the number of the bus, of the device on it and of its function, packed.
    fn address(&self) -> String {
        let location = self.get("location_id").unwrap_or_default();
        let (bus, device, function) = (location >> 8 & 0xff, location >> 3 & 0x1f, location & 0x7);
        format!("{:04x}:{bus:02x}:{device:02x}.{function}", self.get("domain").unwrap_or_default())
    }

    /// What it is called by compilers, such as `AMD gfx90a`, of which the kernel tells 90010.
    fn target(&self) -> String {
        let version = self.get("gfx_target_version").unwrap_or_default();
        let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
        format!("AMD gfx{major}{minor:x}{step:x}")
    }
}

fn closed(device: PathBuf, source: io::Error) -> NoAccess {
    match source.kind() {
        io::ErrorKind::NotFound => NoAccess::NoDevice(device),
        _ => NoAccess::Closed { device, source },
    }
}

/// The only thing in a file, where that is a number.
fn number(file: &Path) -> Result<u64, NoAccess> {
    let unclear = || NoAccess::Unclear { file: file.to_owned(), what: "a number" };
    text(file)?.trim().parse().map_err(|_| unclear())
}

fn text(file: &Path) -> Result<String, NoAccess> {
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(file)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().map_err(|source| NoAccess::Unread { file: file.to_owned(), source })
}

#[cfg(test)]
pub(crate) mod tests;
