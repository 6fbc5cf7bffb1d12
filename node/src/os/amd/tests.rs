//! A made-up machine with cards of AMD's, below a temporary folder.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// What the kernel tells of a card.
pub(crate) struct Told {
    pub(crate) bus: u64,
    pub(crate) target: u64,
    pub(crate) unique: u64,
    pub(crate) memory: u64,
    pub(crate) name: &'static str,
}

impl Told {
    pub(crate) fn new(bus: u64, unique: u64) -> Self {
        Self { bus, target: 110_000, unique, memory: 24 << 30, name: "" }
    }
}

/// The folders of the kernel.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    nodes: u64,
}

impl Machine {
    /// One with a processor, and with these cards behind it, all of which may be used.
    pub(crate) fn with(cards: &[Told]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut machine = Self { folder, nodes: 0 };
        machine.put("dev/kfd", "");
        machine.put("sys/class/kfd/kfd/topology/nodes/0/gpu_id", "0\n");
        machine.put("sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 16\nsimd_count 0\n");
        cards.iter().for_each(|card| machine.add(card));
        machine
    }

    fn add(&mut self, card: &Told) {
        self.nodes += 1;
        let (node, render) = (self.nodes, format!("renderD{}", 127 + self.nodes));
        let properties = format!(
            "cpu_cores_count 0\nsimd_count 192\ngfx_target_version {}\nvendor_id 4098\nlocation_id {}\ndomain 0\n\
             drm_render_minor {}\nunique_id {}\n",
            card.target,
            card.bus << 8,
            127 + node,
            card.unique
        );
        self.put(&format!("sys/class/kfd/kfd/topology/nodes/{node}/gpu_id"), "4321\n");
        self.put(&format!("sys/class/kfd/kfd/topology/nodes/{node}/properties"), &properties);
        let device = format!("sys/bus/pci/devices/0000:{:02x}:00.0", card.bus);
        self.put(&format!("{device}/mem_info_vram_total"), format!("{}\n", card.memory));
        self.put(&format!("{device}/mem_info_vram_used"), "1048576\n");
        self.put(&format!("{device}/product_name"), format!("{}\n", card.name));
        let class = self.at(&format!("sys/class/drm/{render}"));
        fs::create_dir_all(&class).expect("made");
        symlink(self.at(&device), class.join("device")).expect("linked");
        self.put(&format!("dev/dri/{render}"), "");
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// A device that nobody can open for writing, root neither: it is a folder.
    pub(crate) fn close(&self, device: &str) {
        fs::remove_file(self.at(device)).expect("removed");
        fs::create_dir(self.at(device)).expect("made");
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel { root: self.folder.path().to_owned() }
    }

    /// The cards, or in words why not, without the folder of the test.
    pub(crate) fn shown(&self) -> Vec<String> {
        let shown = |card: Result<AmdCard, Unreachable>| match card {
            Ok(card) => format!("{card}, {} GiB", card.memory >> 30),
            Err(unreachable) => {
                format!("{}: {}", unreachable.card, protocol::error_chain(&unreachable.reason))
            }
        };
        let root = self.folder.path().display().to_string();
        self.kernel().cards().into_iter().map(|card| shown(card).replace(&root, "")).collect()
    }
}

#[test]
fn card_has_a_name_an_address_and_memory() {
    let cards = [
        Told { name: "Radeon Pro W7900", ..Told::new(3, 7) },
        Told { target: 90_010, memory: 64 << 30, ..Told::new(0xc3, 0) },
    ];
    let machine = Machine::with(&cards);
    let expected = ["Radeon Pro W7900 at 0000:03:00.0, 24 GiB", "AMD gfx90a at 0000:c3:00.0, 64 GiB"];
    assert_eq!(machine.shown(), expected);
    assert_eq!(machine.kernel().used("AMD-0000:c3:00.0"), Some(1 << 20));
    assert_eq!(machine.kernel().used("AMD-0000:c4:00.0"), None);
}

#[test]
fn machine_without_the_driver_has_no_card() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert!(Kernel { root: folder.path().to_owned() }.cards().is_empty());
}

#[test]
fn card_without_access_is_told_with_what_to_do_and_the_others_stay() {
    let machine = Machine::with(&[Told::new(3, 7), Told::new(4, 8), Told::new(5, 9)]);
    machine.close("dev/dri/renderD128");
    fs::remove_file(machine.at("dev/dri/renderD129")).expect("removed");
    let shown = machine.shown();
    assert!(
        shown[0].starts_with("AMD gfx1100 at 0000:03:00.0: `/dev/dri/renderD128` cannot be opened"),
        "{shown:?}"
    );
    assert!(shown[0].contains("`render` (`usermod -aG render USER`): Is a directory"), "{shown:?}");
    assert!(
        shown[1].ends_with(
            "there is no `/dev/dri/renderD129`; in a container it has to be passed in (`--device`)"
        )
    );
    assert_eq!(shown[2], "AMD gfx1100 at 0000:05:00.0, 24 GiB");

    machine.close("dev/kfd");
    assert!(machine.shown().iter().all(|shown| shown.contains("`/dev/kfd` cannot be opened")));
}

#[test]
fn refused_and_missing_devices_are_told_apart() {
    let check = |kind: io::ErrorKind, expected: &str| {
        let text = closed(PathBuf::from("/dev/kfd"), kind.into()).to_string();
        assert!(text.starts_with(expected), "{text}");
    };
    check(io::ErrorKind::PermissionDenied, "`/dev/kfd` cannot be opened");
    check(io::ErrorKind::NotFound, "there is no `/dev/kfd`");
}

#[test]
fn files_that_say_nonsense_or_are_missing_cost_no_more_than_that_card() {
    const NODES: &str = "sys/class/kfd/kfd/topology/nodes";
    let check = |spoil: &dyn Fn(&Machine), expected: &str| {
        let machine = Machine::with(&[Told::new(3, 7), Told::new(4, 8)]);
        spoil(&machine);
        let shown = machine.shown();
        assert!(shown[0].contains(expected), "{shown:?}");
        assert_eq!(shown[1], "AMD gfx1100 at 0000:04:00.0, 24 GiB");
    };
    let garbage: Vec<u8> =
        (0..200_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let properties = format!("{NODES}/1/properties");
    check(&|machine| machine.put(&properties, &garbage), "does not say how much it computes with");
    check(&|machine| machine.put(&properties, ""), "does not say how much it computes with");
    check(
        &|machine| machine.put(&properties, "simd_count 4\ndrm_render_minor 99999999999999999999\n"),
        "AMD gfx000 at 0000:00:00.0: `/sys/class/kfd/kfd/topology/nodes/1/properties` does not say which render",
    );
    check(&|machine| machine.put(&properties, "simd_count 4\ndrm_render_minor 0\n"), "which render device");
    let removed = |machine: &Machine, path: &str| fs::remove_file(machine.at(path)).expect("removed");
    check(&|machine| removed(machine, &properties), "AMD, entry 1 of the kernel's list: `/sys/class/kfd");
    check(&|machine| removed(machine, &format!("{NODES}/1/gpu_id")), "gpu_id` cannot be read");
    let memory = "sys/bus/pci/devices/0000:03:00.0/mem_info_vram_total";
    check(&|machine| removed(machine, memory), "mem_info_vram_total` cannot be read");
    check(&|machine| machine.put(memory, "-1"), "mem_info_vram_total` does not say a number");
    check(
        &|machine| machine.put("sys/bus/pci/devices/0000:03:00.0/product_name", [0xff, b'\n', 7]),
        "\u{fffd} at",
    );
}

#[test]
fn process_is_told_of_its_card_by_number_or_by_place() {
    let mut cards = vec![Told::new(3, 0xab), Told::new(4, 1), Told::new(5, 0)];
    let machine = Machine::with(&cards);
    machine.close("dev/dri/renderD129");
    let check = |id: &str, walled: bool, render: &str, visible: &str| {
        let devices = vec![machine.at("dev/kfd"), machine.at("dev/dri").join(render)];
        assert_eq!(machine.kernel().access(id, walled), Some((devices, visible.to_owned())));
    };
    check("AMD-0000:03:00.0", true, "renderD128", "GPU-00000000000000ab");
    check("AMD-0000:03:00.0", false, "renderD128", "GPU-00000000000000ab");
    check("AMD-0000:05:00.0", true, "renderD130", "0");
    // The closed one before it is not counted.
    check("AMD-0000:05:00.0", false, "renderD130", "1");
    cards.clear();
    assert_eq!(Machine::with(&cards).kernel().access("AMD-0000:03:00.0", true), None);
}
