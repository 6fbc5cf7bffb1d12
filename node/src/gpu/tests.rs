//! Made-up machines, and which of their cards are used.

use super::*;
use crate::os::amd::tests::{Machine, Told};

const CUDA: Accelerator = Accelerator::Cuda { major: 12, minor: 4 };

fn no_driver() -> NoNvidia {
    NoNvidia::NoDriver(nvml_wrapper::error::NvmlError::NotFound)
}

fn device(name: &str, uuid: &str) -> Device {
    Device::Gpu { name: name.to_owned(), uuid: uuid.to_owned(), memory: 24 << 30 }
}

#[test]
fn cards_of_amd_are_slots_but_not_what_is_closed_or_within_a_processor() {
    let integrated = Told { target: 100_306, memory: 512 << 20, ..Told::new(0x0e, 0) };
    let machine = Machine::with(&[Told::new(3, 7), Told::new(4, 8), integrated]);
    machine.close("dev/dri/renderD129");
    let found = choose(Err(no_driver()), machine.kernel().cards());
    assert_eq!(found.cards, [device("AMD gfx1100", "AMD-0000:03:00.0")]);
    assert_eq!(found.accelerator, Accelerator::Rocm);
    let unused: Vec<_> = found.unused.iter().map(ToString::to_string).collect();
    assert!(unused[0].starts_with("AMD gfx1100 at 0000:04:00.0: `"), "{unused:?}");
    assert!(unused[0].contains("the group that owns it, most often `render`"), "{unused:?}");
    let small = "AMD gfx1036 at 0000:0e:00.0: it has 512 MiB of memory of its own";
    assert!(unused[1].starts_with(small), "{unused:?}");
    assert_eq!(unused.len(), 2);
}

#[test]
fn nvidia_goes_first_and_the_others_are_told() {
    let machine = Machine::with(&[Told::new(3, 7)]);
    let nvidia = device("RTX", "GPU-1");
    let found = choose(Ok((vec![nvidia.clone()], CUDA)), machine.kernel().cards());
    assert_eq!((found.cards, found.accelerator), (vec![nvidia], CUDA));
    assert!(found.unused[0].to_string().ends_with("cards of one make, and those of NVIDIA go first"));
    // A driver without a card, as one that does not answer, leaves room for the others.
    let broken = NoNvidia::Driver(nvml_wrapper::error::NvmlError::DriverNotLoaded);
    for nvidia in [Ok((vec![], CUDA)), Err(broken)] {
        assert_eq!(choose(nvidia, machine.kernel().cards()).accelerator, Accelerator::Rocm);
    }
}

#[test]
fn machine_without_cards_computes_on_its_processor() {
    let found = choose(Err(no_driver()), Machine::with(&[]).kernel().cards());
    assert_eq!(found, Found { cards: vec![], accelerator: Accelerator::Cpu, unused: vec![] });
    let broken = NoNvidia::Driver(nvml_wrapper::error::NvmlError::DriverNotLoaded);
    let found = choose(Err(broken), vec![]);
    assert!(found.unused[0].to_string().starts_with("NVIDIA: the NVIDIA driver does not answer: "));
}

#[test]
fn process_on_a_card_of_amd_is_let_to_that_card_alone() {
    let machine = Machine::with(&[Told::new(3, 0xab), Told::new(4, 0)]);
    let told = |id: &str, walled: bool, visible: &str, devices: &[&str]| {
        let access = amd_access(&machine.kernel(), id, walled);
        let variables = [visible, "0", "0"];
        assert_eq!(access.variables.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>(), variables);
        assert_eq!(access.devices, devices.iter().map(|device| machine.at(device)).collect::<Vec<_>>());
    };
    told("AMD-0000:03:00.0", true, "GPU-00000000000000ab", &["dev/kfd", "dev/dri/renderD128"]);
    told("AMD-0000:04:00.0", true, "0", &["dev/kfd", "dev/dri/renderD129"]);
    // What is gone is none, not the first that there is.
    told("AMD-0000:05:00.0", true, "", &[]);
}

#[test]
fn process_on_another_device_is_told_by_cuda() {
    let check = |device: Option<&Device>, expected: &str| {
        assert_eq!(access(device, true).variables, [("CUDA_VISIBLE_DEVICES", expected.to_owned())]);
    };
    check(Some(&device("RTX", "GPU-1")), "GPU-1");
    check(Some(&cpu()), "");
    check(None, "");
}
